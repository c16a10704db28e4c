"""One small example of every learner, its loss as a function of its parameters and inputs: what the tests of all transforms run on."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.func import functional_call

import fastmeta
from harness.any_module import Unknown
from harness.cases import Case

T, S, Q, N, FEATURES = 2, 4, 3, 2, 3


class Loss(nn.Module):
    """learner.loss as a module, so that torch.func.functional_call and torch.export take it."""

    def __init__(self, learner):
        super().__init__()
        self.learner = learner

    def forward(self, *episode):
        return self.learner.loss(*episode)


@dataclass
class LearnerCase(Case):
    loss: Loss
    labels: tuple[torch.Tensor, torch.Tensor]  # of support and query


def mlp():
    return nn.Sequential(nn.Linear(FEATURES, 3), nn.Tanh(), nn.Linear(3, N))


def batch_norm():
    """No fused op knows it; with the norm that torch.vmap gets wrong."""
    norm = nn.BatchNorm1d(3, track_running_stats=False)
    return nn.Sequential(nn.Linear(FEATURES, 3), norm, nn.Tanh(), nn.Linear(3, N))


def layer_norm():
    return nn.Sequential(nn.LayerNorm(FEATURES), nn.Linear(FEATURES, N))


def encoder():
    return nn.Sequential(nn.Linear(FEATURES, 3), nn.Tanh())


LEARNERS = {
    "MAML": lambda: fastmeta.MAML(mlp(), 0.3, 2),
    "MAML (any module)": lambda: fastmeta.MAML(batch_norm(), nn.Parameter(torch.tensor(0.3)), 1),
    "MetaSGD": lambda: fastmeta.MetaSGD(mlp(), 0.3, 2),
    "MetaSGD (any module)": lambda: fastmeta.MetaSGD(layer_norm(), 0.3, 1),
    "ANIL": lambda: fastmeta.ANIL(encoder(), nn.Linear(3, N), 0.3, 2),
    "ProtoMAML": lambda: fastmeta.ProtoMAML(encoder(), N, 0.3, 1),
    "LEO": lambda: fastmeta.LEO(FEATURES, 2, 0.3, 2, finetune_steps=1, num_classes=N).eval(),
    "ProtoNet": lambda: fastmeta.ProtoNet(encoder(), num_classes=N),
    "MatchingNet": lambda: fastmeta.MatchingNet(encoder(), num_classes=N),
    "MatchingNet (FullContext)": lambda: fastmeta.MatchingNet(
        encoder(), context=fastmeta.FullContext(3, 2), num_classes=N
    ),
    "IMAML": lambda: fastmeta.IMAML(mlp(), 0.1, 3),
    "Reptile": lambda: fastmeta.Reptile(mlp(), 0.1, 3),
    "MahalanobisNet": lambda: fastmeta.MahalanobisNet(encoder(), num_classes=N),
}


def episode(dtype=torch.float64):
    sy, qy = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]]), torch.tensor([[0, 1, 0], [1, -100, 0]])
    return torch.randn(T, S, FEATURES, dtype=dtype), sy, torch.randn(T, Q, FEATURES, dtype=dtype), qy


def learner_case(name, dtype=torch.float64):
    """The loss [T] as a function of the parameters, support_x and query_x."""
    loss, (sx, sy, qx, qy) = Loss(LEARNERS[name]().to(dtype)), episode(dtype)
    params = dict(loss.named_parameters())

    def fn(*tensors):
        *values, sx, qx = tensors
        return functional_call(loss, dict(zip(params, values, strict=True)), (sx, sy, qx, qy))

    return LearnerCase(fn, [*(p.detach() for p in params.values()), sx, qx], loss, (sy, qy))


ALL = LEARNERS | {
    "MAML (convolutions)": lambda: fastmeta.MAML(convnet(), 0.1, 2),
    "MetaSGD (unknown)": lambda: fastmeta.MetaSGD(Unknown(mlp()), 0.1, 2),
    "Reptile (any module)": lambda: fastmeta.Reptile(Unknown(mlp()), 0.1, 2),
    "IMAML (any module)": lambda: fastmeta.IMAML(Unknown(mlp()), 0.1, 2),
    "ANIL (any module)": lambda: fastmeta.ANIL(encoder(), Unknown(nn.Linear(3, N)), 0.1, 2),
}
FIRST_ORDER = ("IMAML", "Reptile", "IMAML (any module)", "Reptile (any module)")


def convnet():
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(9 * FEATURES, N))


def made(name):
    """In float64."""
    return ALL[name]().to(torch.float64)


def data_of(name):
    sx, sy, qx, qy = episode()
    if name == "MAML (convolutions)":
        sx, qx = (torch.randn(*x.shape[:2], 1, 3, FEATURES, dtype=torch.float64) for x in (sx, qx))
    return [sx, sy, qx, qy]


def says(name, text, kind=(ValueError, TypeError)):
    """An error that begins with the learner's name."""
    return pytest.raises(kind, match=f"^{name.split(' (')[0]}: {text}")

"""What the programs of the integrations' tests share: models, tasks, and the same training in plain PyTorch."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from fastmeta.integrations import _steps

ITERATIONS, TASKS, SHOTS, WAYS, QUERIES = 50, 2, 5, 3, 4


@pytest.fixture(autouse=True, params=["small", "large"])
def size(request, monkeypatch):
    """Modules that import it run their tests with the step of small networks, and with the op's."""
    if request.param == "large":
        monkeypatch.setattr(_steps, "SMALL", 0)


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def waves(tasks=TASKS):
    """Support and query of regression tasks, [T, S, 1] each."""
    amplitude, phase = 1 + 4 * torch.rand(tasks, 1, 1).double(), 3 * torch.rand(tasks, 1, 1).double()
    support_x, query_x = (10 * torch.rand(tasks, SHOTS, 1).double() - 5 for _ in range(2))
    return support_x, amplitude * (support_x - phase).sin(), query_x, amplitude * (query_x - phase).sin()


def encoder():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8)).double()


def episode():
    """Support and query of a classification task: [S, 6], [S], [Q, 6], [Q], labels in no order."""
    centres = 2 * torch.randn(WAYS, 6).double()
    found = []
    for shots in (2, QUERIES):
        labels = torch.arange(WAYS).repeat(shots)[torch.randperm(WAYS * shots)]
        found += [centres[labels] + torch.randn(len(labels), 6).double(), labels]
    return found


def trained(parameters, meta_loss):
    """The meta-losses of ITERATIONS steps of Adam."""
    optimiser = torch.optim.Adam(parameters, 1e-2)
    torch.manual_seed(0)
    losses = []
    for _ in range(ITERATIONS):
        optimiser.zero_grad()
        loss = meta_loss()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def maml_by_hand(model, rates, steps, first_order=False):
    """MAML on `waves`: `rates`, a number, or one for each parameter."""
    names = [name for name, _ in model.named_parameters()]
    alphas = rates if isinstance(rates, list) else [rates] * len(names)

    def meta_loss():
        total = 0
        for support_x, support_y, query_x, query_y in zip(*waves(), strict=True):
            params = dict(model.named_parameters())
            for _ in range(steps):
                loss = F.mse_loss(functional_call(model, params, support_x), support_y)
                grads = torch.autograd.grad(loss, list(params.values()), create_graph=not first_order)
                params = {n: params[n] - a * g for n, a, g in zip(names, alphas, grads, strict=True)}
            total = total + F.mse_loss(functional_call(model, params, query_x), query_y)
        return total / TASKS

    learned = [r for r in alphas if isinstance(r, nn.Parameter)]
    return trained([*model.parameters(), *learned], meta_loss)


def protonet_by_hand(model, scores_of):
    """A prototypical network on `episode`: scores_of(query [Q, D], prototypes [N, D])."""

    def meta_loss():
        support_x, support_y, query_x, query_y = episode()
        features = model(support_x)
        centres = torch.stack([features[support_y == k].mean(0) for k in range(WAYS)])
        return F.cross_entropy(scores_of(model(query_x), centres), query_y)

    return trained(model.parameters(), meta_loss)


@functools.cache
def losses_of(program, library):
    """What a program prints with a library as it is."""
    return program(library)


def assert_same(losses, expected):
    assert len(losses) == ITERATIONS and losses[-1] != losses[0]
    torch.testing.assert_close(torch.tensor(losses).double(), torch.tensor(expected).double(), rtol=0, atol=1e-9)

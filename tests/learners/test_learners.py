"""Learners on native kernels against the plain loop; ProtoNet against plain PyTorch; what every learner does as a module."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck

import fastmeta
from fastmeta.networks.batch_norm import ExactNorms
from harness.engine import kernels_of
from harness.learner_cases import ALL, data_of, made
from harness.plain_loops import D, episode, losses_of, mlp, same_as_the_plain_loop


def conv4(channels=4):
    """Conv4 on 16 x 16 images, batch norm on batch statistics."""
    layers: list[nn.Module] = []
    for i in range(4):
        norm = nn.BatchNorm2d(channels, track_running_stats=False)
        layers += [nn.Conv2d(channels if i else 1, channels, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 3)).to(D)


def episode_of(kind):
    return episode(tasks=2, shape=(6,) if kind is mlp else (1, 16, 16))


@pytest.mark.cpu
@pytest.mark.parametrize(
    "norm",
    [
        lambda x: F.batch_norm(x, None, None, training=True),
        F.instance_norm,
        lambda x: F.layer_norm(x, x.shape[-1:]),
    ],
)
def test_third_derivatives_of_torchs_norms_are_still_wrong(norm):
    """Why `ExactNorms` is there, which has them right. If this fails, torch has mended the norm."""
    x = torch.randn(4, 3, 5, dtype=D, requires_grad=True)

    def second(x):
        (g,) = torch.autograd.grad(norm(x).sin().square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.sin().sum(), x, create_graph=True)[0]

    assert gradcheck(norm, x) and not gradcheck(second, x, raise_exception=False)
    with ExactNorms():
        assert gradcheck(second, x)


@pytest.mark.parametrize("kind", [mlp, conv4])
@pytest.mark.parametrize("learner_of", [fastmeta.MAML, fastmeta.MetaSGD])
@pytest.mark.parametrize(("steps", "first_order"), [(1, False), (5, False), (5, True)])
def test_meta_gradient_equals_plain_autograd(kind, learner_of, steps, first_order):
    learner, data = learner_of(kind(), 0.1, steps, first_order=first_order), episode_of(kind)
    assert kernels_of(learner) == ("mlp" if kind is mlp else "conv")
    same_as_the_plain_loop(learner, data)
    if learner_of is fastmeta.MAML:
        learner.lr = nn.Parameter(torch.rand(steps, dtype=D) / 4)
        same_as_the_plain_loop(learner, data)


@pytest.mark.parametrize("kind", [mlp, conv4])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("backend", ["ext", "reference"], indirect=True)
def test_anil_equals_plain_autograd(kind, first_order, backend):
    rates = nn.Parameter(torch.tensor([0.1, 0.3, 0.2], dtype=D))
    *body, head = kind()
    learner = fastmeta.ANIL(nn.Sequential(*body), head, rates, 3, first_order=first_order)
    assert kernels_of(learner) == "mlp"  # the head
    same_as_the_plain_loop(learner, episode_of(kind))


@pytest.mark.parametrize("kind", [mlp, conv4])
def test_evaluation_without_gradients(kind):
    learner, (sx, sy, qx, _) = fastmeta.MAML(kind(), 0.1, 2), episode_of(kind)
    with torch.no_grad():
        quiet = learner(sx, sy, qx)
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, learner(sx, sy, qx).detach())


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
def test_protonet_equals_plain_pytorch(metric):
    temperature = nn.Parameter(torch.tensor(0.7, dtype=D))
    learner = fastmeta.ProtoNet(nn.Linear(6, 4).to(D), metric=metric, temperature=temperature)
    sx, _, qx, qy = episode()
    sy, params, logits = torch.arange(3).repeat(4, 2), list(learner.parameters()), []
    for x, y, query in zip(sx, sy, qx, strict=True):
        s, q = learner.encoder(x), learner.encoder(query)
        centres = torch.stack([s[y == k].mean(0) for k in range(3)])
        logits.append(-(torch.cdist(q, centres) ** (2 if metric == "sqeuclidean" else 1)) / temperature)
    ours, plain = learner.loss(sx, sy, qx, qy), losses_of(logits, qy)
    torch.testing.assert_close(learner(sx, sy, qx), torch.stack(logits).log_softmax(-1))
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(torch.autograd.grad(ours.sum(), params), torch.autograd.grad(plain.sum(), params))


def seeded(function, *args):
    torch.manual_seed(5)
    return function(*args)


@pytest.mark.parametrize("name", ALL)
def test_modules_behave(name):
    """Gradients to all parameters, an optimiser's step, copies, state_dict, .to(), evaluation."""
    learner, data = made(name).train(), data_of(name)
    before = seeded(learner.loss, *data).detach()
    twin, again = copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))
    seeded(learner.loss, *data).mean().backward()
    assert all(p.grad is not None for p in learner.parameters())
    torch.optim.SGD(learner.parameters(), 0.1).step()
    assert not torch.equal(seeded(learner.loss, *data), before)
    for other in (twin, again):
        assert torch.equal(seeded(other.loss, *data), before)
        other.load_state_dict(learner.state_dict())
        torch.testing.assert_close(seeded(other.loss, *data), seeded(learner.loss, *data), rtol=0, atol=0)
    with torch.no_grad():
        assert not learner.loss(*data).requires_grad
    assert learner(*data[:3]).requires_grad == ("Reptile" not in name)
    single = [x.float() if x.is_floating_point() else x for x in data]
    assert learner.float()(*single[:3]).dtype == learner.loss(*single).dtype == torch.float32
    assert {p.device.type for p in learner.to("meta").parameters()} == {"meta"}

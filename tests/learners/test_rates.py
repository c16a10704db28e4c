"""Rates that are not finite, episodes without tasks, and tensors of a learner that are no parameters."""

import pytest
import torch
from torch import nn

import fastmeta
from harness.learner_cases import ALL, N, Q, batch_norm, data_of, encoder, episode, made, mlp, says

D = torch.float64


@pytest.mark.parametrize("name", [name for name in ALL if "Net" not in name])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_rate_that_is_not_finite_is_refused(name, wrong):
    learner, data = made(name), data_of(name)
    kind = name.split(" (")[0]
    tensors = [*learner.alpha] if kind == "MetaSGD" else [learner.lr] if isinstance(learner.lr, nn.Parameter) else []
    if not tensors:
        for rate in (wrong, torch.tensor(wrong, dtype=D)):
            learner.lr = rate
            with says(name, "lr must be finite", ValueError):
                learner.loss(*data)
            with says(name, "lr must be finite", ValueError):
                learner(*data[:3])
        return
    for rate in tensors if wrong != wrong else tensors[-1:]:
        before = rate.detach().clone()
        with torch.no_grad():
            rate.view(-1)[-1] = wrong
        with says(name, r"(lr(\[\d\])?|the rate of .*) must be finite", ValueError):
            learner.loss(*data)
        with says(name, r"(lr(\[\d\])?|the rate of .*) must be finite", ValueError):
            learner(*data[:3])
        with torch.no_grad():
            rate.copy_(before)
    learner.loss(*data)


@pytest.mark.parametrize("name", ALL)
def test_no_tasks_give_no_losses_and_gradients_of_zero(name):
    learner, data = made(name), [x[:0] for x in data_of(name)]
    data[0].requires_grad_()
    losses = learner.loss(*data)
    assert losses.shape == (0,) and losses.dtype == D
    losses.sum().backward()
    assert (
        all(p.grad is not None and not p.grad.any() for p in learner.parameters())
        and data[0].grad.shape == data[0].shape
    )
    outputs = learner(*data[:3])
    assert outputs.shape == (0, Q, N) and outputs.dtype == D


@pytest.mark.parametrize("kind", [fastmeta.ProtoNet, fastmeta.MatchingNet])
def test_without_tasks_or_examples_the_ways_must_be_known(kind):
    sx, sy, qx, qy = episode()
    learner = kind(encoder()).to(D)
    assert learner.loss(sx[:0], sy[:0], qx[:0], qy[:0]).shape == (0,)
    with says(kind.__name__, "num_classes must be given where there is no task, got None"):
        learner(sx[:0], sy[:0], qx[:0])
    with says(kind.__name__, r"support_y must hold at least one example, got shape \[2, 0\]"):
        learner(sx[:, :0], sy[:, :0], qx)


def test_a_rate_follows_the_learner():
    lr = torch.tensor([0.1, 0.2])
    for build in (lambda r: fastmeta.MAML(mlp(), r, 2), lambda r: fastmeta.ANIL(encoder(), nn.Linear(3, N), r, 2),
                  lambda r: fastmeta.ProtoMAML(encoder(), N, r, 2), lambda r: fastmeta.MAML(batch_norm(), r, 2)):  # fmt: skip
        learner = build(lr)
        before = list(learner.state_dict())
        learner.double()
        assert learner.lr.dtype == D and lr.dtype == torch.float32 and list(learner.state_dict()) == before
        learner.loss(*episode()).sum().backward()
        assert learner.to("meta").lr.device.type == "meta"


def test_a_rate_that_is_trained_elsewhere_stays_the_same_tensor():
    lr = torch.tensor(0.1, requires_grad=True)
    learner = nn.Sequential(fastmeta.MAML(mlp(), lr, 1)).double()[0]
    assert learner.lr is lr and lr.dtype == D and lr.is_leaf
    learner.loss(*episode()).sum().backward()
    assert lr.grad.dtype == D and lr.grad.abs() > 0
    learner.float()
    assert lr.grad.dtype == torch.float32
    scaled = 2 * torch.tensor(0.1, dtype=D, requires_grad=True)
    learner = fastmeta.MAML(mlp(), scaled, 1).double()
    assert learner.lr is scaled


@pytest.mark.parametrize("kind", [fastmeta.ProtoNet, fastmeta.MatchingNet])
def test_a_temperature_follows_the_learner(kind):
    learner = kind(encoder(), temperature=torch.tensor([0.5])).double()
    assert learner.temperature.dtype == D and "temperature" not in learner.state_dict()
    learner.loss(*episode()).sum().backward()

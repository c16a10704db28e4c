"""ProtoMAML against the plain loop of its paper."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import fastmeta
from harness.plain_loops import D, losses_of, same_gradients

ENCODERS = {
    "linear": lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh()),
    "batch norm": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 2, 3, padding=1),
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.ReLU(),
    ),
}


def episode(tasks=4):
    y = torch.arange(3).repeat(2).expand(tasks, 6)
    return torch.randn(tasks, 6, 6, dtype=D), y, torch.randn(tasks, 6, 6, dtype=D), y


def plain_losses(learner, sx, sy, qx, qy):
    losses = []
    for task in range(len(sx)):
        params = dict(learner.encoder.named_parameters())
        features = learner.encoder(sx[task]).flatten(1)
        centres = torch.stack([features[sy[task] == k].mean(0) for k in range(3)])
        head = [2 * centres, -centres.square().sum(1)]

        def loss(params, head, x, y):
            return F.cross_entropy(F.linear(functional_call(learner.encoder, params, (x,)).flatten(1), *head), y)

        for _ in range(learner.steps):
            values = [p.view_as(p) for p in (*params.values(), *head)]  # a variable, no function of the encoder
            inner = loss(dict(zip(params, values[:-2], strict=True)), values[-2:], sx[task], sy[task])
            grads = torch.autograd.grad(inner, values, create_graph=not learner.first_order)
            values = [p - learner.lr * g for p, g in zip(values, grads, strict=True)]
            params, head = dict(zip(params, values[:-2], strict=True)), values[-2:]
        losses.append(loss(params, head, qx[task], qy[task]))
    return torch.stack(losses)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_equals_plain_pytorch(kind, steps, first_order, at_once):
    rate = nn.Parameter(torch.tensor(0.2, dtype=D))
    learner = fastmeta.ProtoMAML(ENCODERS[kind]().to(D), 3, rate, steps, first_order=first_order)
    data = episode()
    data[0].requires_grad_()
    inputs = [*learner.parameters(), data[0]]
    assert len(inputs) == len(list(learner.encoder.parameters())) + 2  # no parameters of the head
    plain = plain_losses(learner, *data)
    same_gradients(learner.loss(*data), plain, inputs)
    same_gradients(losses_of(learner(*data[:3]), data[3]), plain, inputs)


def test_before_the_first_step_it_is_a_protonet():
    encoder, data = ENCODERS["linear"]().to(D), episode()
    found = fastmeta.ProtoMAML(encoder, 3, steps=0)(*data[:3]).log_softmax(-1)
    torch.testing.assert_close(found, fastmeta.ProtoNet(encoder, metric="sqeuclidean")(*data[:3]))


def test_derivatives_of_the_meta_gradient(at_once):
    learner, data = fastmeta.ProtoMAML(ENCODERS["linear"]().to(D), 3, 0.2, 2), episode()
    params = list(learner.parameters())

    def second(losses):
        grads = torch.autograd.grad(losses.sum(), params, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), params)

    found = [second(of(*data)) for of in (learner.loss, lambda *data: plain_losses(learner, *data))]
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


def test_the_head_is_no_parameter():
    learner = fastmeta.ProtoMAML(ENCODERS["linear"](), 3, 0.2, 1)
    assert list(learner.state_dict()) == ["encoder.0.weight", "encoder.0.bias"]
    with pytest.raises(ValueError, match="ProtoMAML: batch norm must use the statistics of each batch"):
        fastmeta.ProtoMAML(nn.BatchNorm1d(3), 3)

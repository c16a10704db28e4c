"""Dataset distillation: unroll, autograd's graph over all steps, and a graph that checkpoints each."""

from functools import partial

import bench_learners
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import fastmeta
from harness.plain_unroll import adam, plain_unroll, sgd

WAYS, IMAGES, QUERIES = 10, 20, 100
OPTIMISERS = {
    "momentum": (partial(fastmeta.SGD, momentum=0.9), partial(sgd, momentum=0.9)),
    "Adam": (partial(fastmeta.Adam, eps=1e-2), partial(adam, eps=1e-2)),  # a smaller one rounds float32 away
}


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, WAYS))


def conv4():
    return nn.Sequential(*bench_learners.body(True), nn.Linear(bench_learners.WIDTH, WAYS))


NETS = {"MLP": mlp, "Conv4": conv4}


def by_checkpoints(loss, params, batch, formula, steps, rate):
    """Each step computes its graph again on the way back."""

    def step(k, params, states):
        points, states = plain_unroll(loss, params, [batch], formula, dict(states), before=k, lr=rate)
        return points[-1], states

    states = {name: [torch.zeros_like(p)] * 2 for name, p in params.items()}
    for k in range(steps):
        params, states = checkpoint(step, k, params, states, use_reentrant=False)
    return params


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize(
    ("net", "optimiser"), [("MLP", "momentum"), ("MLP", "Adam"), ("Conv4", "momentum")]
)  # of Adam on Conv4 float32 leaves one digit, by whatever way
def bench_unroll(race, net, optimiser, steps):
    """The loss of the last weights, and its gradients to initial weights, images and rate: dataset distillation."""
    model, (make, formula) = NETS[net](), OPTIMISERS[optimiser]
    images, labels = torch.randn(IMAGES, 1, 28, 28).requires_grad_(), torch.arange(IMAGES) % WAYS
    query, targets = torch.randn(QUERIES, 1, 28, 28), torch.arange(QUERIES) % WAYS
    rate = torch.tensor(0.01).requires_grad_()
    params = dict(model.named_parameters())

    def loss(p, x, y):
        return F.cross_entropy(functional_call(model, p, (x,)), y)

    def run(after):
        def whole():
            value = loss(after(), query, targets)
            return value.detach(), *torch.autograd.grad(value, [*params.values(), images, rate])

        return whole

    def ours(keep="all"):
        return fastmeta.unroll(loss, model, (images, labels), steps=steps, optimiser=make(rate), keep=keep)[0]

    batch = images, labels
    race(
        f"unroll {net} {optimiser} K{steps}, {IMAGES} learned images",
        {
            "ext": run(ours),
            "reference": run(lambda: plain_unroll(loss, params, [batch] * steps, formula, lr=rate)[0][-1]),
            "checkpoint": run(lambda: by_checkpoints(loss, params, batch, formula, steps, rate)),
        },
        also={"ext, sqrt(K) kept": run(partial(ours, "sqrt"))},
        mode="meta-iteration",
        sizes={"steps": steps},
        memory=True,
    )

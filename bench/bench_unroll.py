"""Dataset distillation: unroll, autograd's graph over all steps, and a graph that checkpoints each."""

from functools import partial

import bench_learners
import pytest
import torch
import torch.nn.functional as F
from plain import WAYS
from torch import nn
from torch.func import functional_call

import fastmeta

CLASSES, IMAGES, QUERIES = 10, 20, 100
OPTIMISERS = {
    "momentum": partial(fastmeta.SGD, momentum=0.9),
    "Adam": partial(fastmeta.Adam, eps=1e-2),  # a smaller one rounds float32 away
}


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, CLASSES)
    )


def conv4():
    return nn.Sequential(*bench_learners.body(True), nn.Linear(bench_learners.WIDTH, CLASSES))


NETS = {"MLP": mlp, "Conv4": conv4}


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize(
    ("net", "optimiser"), [("MLP", "momentum"), ("MLP", "Adam"), ("Conv4", "momentum")]
)  # of Adam on Conv4 float32 leaves one digit, by whatever way
def bench_unroll(race, net, optimiser, steps):
    """The loss of the last weights, and its gradients to initial weights, images and rate: dataset distillation."""
    model, optimise = NETS[net](), OPTIMISERS[optimiser]
    images, labels = torch.randn(IMAGES, 1, 28, 28).requires_grad_(), torch.arange(IMAGES) % CLASSES
    query, targets = torch.randn(QUERIES, 1, 28, 28), torch.arange(QUERIES) % CLASSES
    rate = torch.tensor(0.01).requires_grad_()
    params = dict(model.named_parameters())

    def loss(p, x, y):
        return F.cross_entropy(functional_call(model, p, (x,)), y)

    def run(way, **options):
        def whole():
            given = (images, labels)
            after, _ = WAYS[way](loss, model, given, steps=steps, optimiser=optimise(rate), **options)
            value = loss(after, query, targets)
            return value.detach(), *torch.autograd.grad(value, [*params.values(), images, rate])

        return whole

    race(
        f"unroll {net} {optimiser} K{steps}, {IMAGES} learned images",
        {"ext": run("unroll"), "reference": run("autograd"), "checkpoint": run("checkpoint")},
        also={"ext, sqrt(K) kept": run("unroll", keep="sqrt")},
        mode="meta-iteration",
        sizes={"steps": steps},
        memory=True,
    )

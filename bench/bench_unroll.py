"""Dataset distillation: unroll, autograd's graph over all steps, a graph that checkpoints each, and the libraries that unroll."""

from functools import partial

import bench_learners
import pytest
import torch
import torch.nn.functional as F
from plain import WAYS
from torch import nn
from torch.func import functional_call

import fastmeta
from measure.contenders import imported

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


def by_higher(loss, model, batch, *, steps, optimiser):
    """Its fast weights; the rate overrides that of torch's optimiser."""
    torchs = torch.optim.SGD(model.parameters(), 0.01, momentum=optimiser.momentum)
    given = {"override": {"lr": [optimiser.lr]}, "copy_initial_weights": False}
    names = [name for name, _ in model.named_parameters()]
    with imported("higher").innerloop_ctx(model, torchs, **given) as (fast, step):
        for _ in range(steps):
            step.step(loss(dict(zip(names, fast.fast_params, strict=True)), *batch))
        return dict(zip(names, fast.fast_params, strict=True)), None


def by_torchopt(loss, model, batch, *, steps, optimiser):
    """Its functional optimisers."""
    torchopt, params = imported("torchopt"), dict(model.named_parameters())
    if isinstance(optimiser, fastmeta.Adam):
        chain = torchopt.adam(optimiser.lr, eps=optimiser.eps)
    else:
        chain = torchopt.sgd(optimiser.lr, momentum=optimiser.momentum)
    point = tuple(params.values())
    state = chain.init(point)
    for _ in range(steps):
        grads = torch.autograd.grad(loss(dict(zip(params, point, strict=True)), *batch), point, create_graph=True)
        updates, state = chain.update(grads, state, inplace=False)
        point = torchopt.apply_updates(point, updates, inplace=False)
    return dict(zip(params, point, strict=True)), None


LIBRARIES = {
    "momentum": {"higher": by_higher, "torchopt": by_torchopt},
    "Adam": {"torchopt": by_torchopt},
}  # higher's Adam is another


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize(
    ("net", "optimiser"), [("MLP", "momentum"), ("MLP", "Adam"), ("Conv4", "momentum")]
)  # of Adam on Conv4 float32 leaves one digit, by whatever way
def bench_unroll(race, net, optimiser, steps):
    """The loss of the last weights, and its gradients to initial weights, images and rate: dataset distillation."""
    model, optimise, libraries = NETS[net](), OPTIMISERS[optimiser], LIBRARIES[optimiser]
    images, labels = torch.randn(IMAGES, 1, 28, 28).requires_grad_(), torch.arange(IMAGES) % CLASSES
    query, targets = torch.randn(QUERIES, 1, 28, 28), torch.arange(QUERIES) % CLASSES
    rate = torch.tensor(0.01).requires_grad_()
    params = dict(model.named_parameters())

    def loss(p, x, y):
        return F.cross_entropy(functional_call(model, p, (x,)), y)

    def run(way, **options):
        def whole():
            given = (images, labels)
            after, _ = (WAYS | libraries)[way](loss, model, given, steps=steps, optimiser=optimise(rate), **options)
            value = loss(after, query, targets)
            return value.detach(), *torch.autograd.grad(value, [*params.values(), images, rate])

        return whole

    race(
        f"unroll {net} {optimiser} K{steps}, {IMAGES} learned images",
        {"ext": run("unroll"), "reference": run("autograd"), "checkpoint": run("checkpoint")}
        | {name: run(name) for name in libraries if imported(name)},
        also={"ext, sqrt(K) kept": run("unroll", keep="sqrt")},
        mode="meta-iteration",
        sizes={"steps": steps},
        memory=True,
    )

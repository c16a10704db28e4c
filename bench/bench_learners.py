"""Learners on images. The MLP learners race in bench_mlp_meta_loss.py."""

import copy
from functools import partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import fastmeta
from fastmeta.networks.batch_norm import ExactNorms
from harness.any_module import general
from measure import distances, inner_loops, jax_ways, peers
from measure.contenders import compiled, on_backends

TASKS, WAYS, SHOTS, QUERIES, WIDTH = 4, 5, 1, 15, 32
RATE = 0.1


class Images(NamedTuple):
    """Of a Conv4 with `width` channels on square images."""

    tasks: int = 8
    width: int = WIDTH
    channels: int = 1
    side: int = 28

    def __str__(self):
        return f"Conv4-{self.width} {self.side}x{self.side}x{self.channels}, {self.tasks} tasks"


def body(normalised, width=WIDTH, channels=1):
    """Conv4 from [n, channels, side, side] to its features."""
    layers = []
    for i in range(4):
        norm = [nn.BatchNorm2d(width, track_running_stats=False)] if normalised else []
        convolution = nn.Conv2d(
            width if i else channels, width, 3, padding=1, bias=not normalised
        )  # a norm takes a bias off again
        layers += [convolution, *norm, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten())


def episodes(tasks=TASKS, channels=1, side=28):
    support_y, query_y = (torch.arange(WAYS).repeat(k).expand(tasks, WAYS * k) for k in (SHOTS, QUERIES))
    support_x, query_x = (torch.randn(tasks, WAYS * k, channels, side, side) for k in (SHOTS, QUERIES))
    return support_x, support_y, query_x, query_y


def features(encoder, support_x, query_x):
    both = encoder(torch.cat([support_x, query_x], 1).flatten(0, 1)).unflatten(0, (TASKS, -1))
    return both[:, : support_x.shape[1]], both[:, support_x.shape[1] :]


def loss_and_gradients(loss, model, data):
    """A call of loss(*data), and its gradients to all parameters."""

    def run():
        value = loss(*data)
        return value.detach(), *torch.autograd.grad(value, list(model.parameters()))

    return run


def of_protonet():
    learner = fastmeta.ProtoNet(body(normalised=True), metric="sqeuclidean", temperature=2.0 * WIDTH, num_classes=WAYS)

    def by_mm(model, support_x, support_y, query_x, query_y):
        support, query = features(model.encoder, support_x, query_x)
        centres = support.unflatten(1, (SHOTS, WAYS)).mean(1)
        return distances.loss(distances.by_mm, query, centres, "sqeuclidean", 2.0 * WIDTH, query_y)

    return learner, by_mm


def of_anil():
    learner = fastmeta.ANIL(body(normalised=False), nn.Linear(WIDTH, WAYS), 0.1, 5)

    def by_hand(model, support_x, support_y, query_x, query_y):
        support, query = features(model.body, support_x, query_x)
        head = list(model.model.parameters())
        return inner_loops.by_hand(head, 0.1, support, support_y, query, query_y, 5, "cross_entropy")

    return learner, by_hand


@pytest.mark.parametrize("learner_of", [of_protonet, of_anil], ids=["ProtoNet", "ANIL"])
def bench_learners(race, learner_of):
    """The loss of a batch of tasks and its gradients to all parameters."""
    learner, plain = learner_of()
    data = episodes()
    in_jax = {}
    if isinstance(learner, fastmeta.ProtoNet):
        in_jax = jax_ways.of_protonet(list(learner.parameters()), data, 2.0 * WIDTH, WAYS)

    def run(loss):
        model = copy.deepcopy(learner)  # leaves of its own
        return loss_and_gradients(partial(loss, model), model, data)

    race(
        f"{type(learner).__name__} Conv4-{WIDTH}, {TASKS} tasks, {WAYS}-way {SHOTS}-shot, {QUERIES} queries each",
        on_backends(run(lambda model, *tasks: model.loss(*tasks).mean())) | {"by hand": run(plain)},
        compiled={"compiled by hand": run(compiled(plain))} | in_jax,
        mode="meta-iteration",
    )


OMNIGLOT = Images()


def net(images=OMNIGLOT):
    features = images.width * (images.side // 16) ** 2
    return nn.Sequential(*body(True, images.width, images.channels), nn.Linear(features, WAYS))


def adapted_loss(model, steps, gradients, support_x, support_y, query_x, query_y):
    """One task's query loss, its inner steps on the graph."""
    params = dict(model.named_parameters())

    def loss(params, x, y):
        return F.cross_entropy(functional_call(model, params, (x,)), y)

    for _ in range(steps):
        grads = gradients(loss, params, support_x, support_y)
        params = {name: p - RATE * g for (name, p), g in zip(params.items(), grads, strict=True)}
    return loss(params, query_x, query_y)


def by_autograd(loss, params, x, y):
    return torch.autograd.grad(loss(params, x, y), list(params.values()), create_graph=True)


def by_func(loss, params, x, y):
    return torch.func.grad(loss)(params, x, y).values()


def one_by_one(model, steps, *data, gradients=by_autograd):
    return torch.stack([adapted_loss(model, steps, gradients, *task) for task in zip(*data, strict=True)]).mean()


def by_unroll(model, steps, *data, keep="all"):
    losses = []
    for x, y, *query in zip(*data, strict=True):
        outer = partial(query_loss, model, *query)
        optimiser = fastmeta.SGD(RATE)
        losses.append(
            fastmeta.unroll(
                (model, "cross_entropy"), model, (x, y), steps=steps, optimiser=optimiser, outer=outer, keep=keep
            )[0]
        )
    return torch.stack(losses).mean()


def query_loss(model, x, y, params):
    return F.cross_entropy(functional_call(model, params, (x,)), y)


def by_vmap(model, steps, *data):
    with ExactNorms():  # torch's own batch norm is wrong there
        return torch.vmap(partial(adapted_loss, model, steps, by_func))(*data).mean()


@pytest.mark.parametrize(
    ("images", "steps"),
    [
        (OMNIGLOT, 1),
        (OMNIGLOT, 5),
        (Images(tasks=32), 1),
        (Images(width=64), 1),
        (Images(tasks=4, channels=3, side=84), 1),
    ],
    ids=str,
)
def bench_maml(race, images, steps):
    """A whole meta-iteration of MAML on Conv4 with batch norm: by the native kernel, by the general engine, by others."""
    model, data = net(images), episodes(images.tasks, images.channels, images.side)
    learner = fastmeta.MAML(model, RATE, steps)
    by_autograd = general(learner)

    def run(loss):
        return loss_and_gradients(loss, model, data)

    others = {
        "general engine": run(lambda *tasks: by_autograd.loss(*tasks).mean()),
        "unroll": run(partial(by_unroll, model, steps)),
        "autograd": run(partial(one_by_one, model, steps)),
        "vmap": run(partial(by_vmap, model, steps)),
    }
    made = {}
    if images == OMNIGLOT:  # the libraries' loops take seconds on the others, and what compiles takes minutes
        others |= peers.contenders(inner_loops.Arguments(model, RATE, *data), steps, "cross_entropy")
        made = jax_ways.of_conv4((list(model.parameters()), RATE, *data), steps)
    if images == OMNIGLOT and steps == 1:
        made["compiled func.grad"] = run(compiled(partial(one_by_one, model, steps, gradients=by_func)))
    race(
        f"MAML {images} K{steps}, {WAYS}-way {SHOTS}-shot, {QUERIES} queries each",
        on_backends(run(lambda *tasks: learner.loss(*tasks).mean())) | others,
        compiled=made,
        mode="meta-iteration",
        memory=images == OMNIGLOT and steps == 5,
    )

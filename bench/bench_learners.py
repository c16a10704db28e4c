"""Learners on images: the convolutions are PyTorch's, the rest runs on the ops. The MLP learners race in bench_mlp_meta_loss.py."""

import copy

import distances
import inner_loops
import pytest
import torch
from common import compiled, on_backends
from torch import nn

import fastmeta

TASKS, WAYS, SHOTS, QUERIES, WIDTH = 4, 5, 1, 15, 32


def body(normalised):
    """Conv4 from [n, 1, 28, 28] to [n, WIDTH]."""
    layers = []
    for i in range(4):
        norm = [nn.BatchNorm2d(WIDTH, track_running_stats=False)] if normalised else []
        convolution = nn.Conv2d(
            WIDTH if i else 1, WIDTH, 3, padding=1, bias=not normalised
        )  # a norm takes a bias off again
        layers += [convolution, *norm, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten())


def episodes():
    support_y, query_y = (torch.arange(WAYS).repeat(k).expand(TASKS, WAYS * k) for k in (SHOTS, QUERIES))
    support_x, query_x = (torch.randn(TASKS, WAYS * k, 1, 28, 28) for k in (SHOTS, QUERIES))
    return support_x, support_y, query_x, query_y


def features(encoder, support_x, query_x):
    both = encoder(torch.cat([support_x, query_x], 1).flatten(0, 1)).unflatten(0, (TASKS, -1))
    return both[:, : support_x.shape[1]], both[:, support_x.shape[1] :]


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

    def run(loss):
        model = copy.deepcopy(learner)  # leaves of its own

        def loss_and_gradients():
            value = loss(model, *data)
            return value.detach(), *torch.autograd.grad(value, list(model.parameters()))

        return loss_and_gradients

    race(
        f"{type(learner).__name__} Conv4-{WIDTH}, {TASKS} tasks, {WAYS}-way {SHOTS}-shot, {QUERIES} queries each",
        on_backends(run(lambda model, *tasks: model.loss(*tasks).mean())) | {"by hand": run(plain)},
        compiled={"compiled by hand": run(compiled(plain))},
    )

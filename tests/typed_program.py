"""What a user writes, for `mypy --strict` (tests/test_types.py)."""

from collections.abc import Sequence
from typing import assert_type

import torch
from torch import Tensor, nn

import fastmeta
from fastmeta.data import Episodes, Sinusoid, TaskGenerator, TaskSampler
from fastmeta.types import Metric, Rate


def classify(query: Tensor, support: Tensor, labels: Tensor, metric: Metric) -> Tensor:
    centres = fastmeta.prototypes(support, labels, 5)
    return fastmeta.proto_log_softmax(query, centres, metric=metric)


def inner_loop(params: Sequence[Tensor], grads: Sequence[Tensor], lr: Rate) -> Sequence[Tensor]:
    return fastmeta.sgd_step(params, grads, lr)


def draw(count: int, generator: TaskGenerator) -> Episodes:
    return Sinusoid().sample(count, 10, 10, generator=generator)


def train(learner: fastmeta.MAML) -> None:
    for support_x, support_y, query_x, query_y in TaskSampler(draw, tasks=4):
        assert_type(learner.loss(support_x, support_y, query_x, query_y), Tensor)


train(fastmeta.MetaSGD(nn.Linear(1, 1), 0.01, 3, loss="mse"))
assert_type(inner_loop([torch.ones(2)], [torch.ones(2)], [0.1]), Sequence[Tensor])
fastmeta.proto_loss(torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1), metric="cosin")  # type: ignore[arg-type]

"""Random problems for driver.cpp, and what the reference makes of them: `python -m arm.problems file` saves them all."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import fastmeta
from arm.network_problems import conv, conv_features, mlp
from arm.saved import Saved, per_task
from harness.compare import values_and_grads

METRICS = ("euclidean", "sqeuclidean", "cosine")
TEMPERATURE = 0.7


def labels_of(T: int, S: int, ways: int) -> Tensor:
    """[T, S], every class among them."""
    return torch.stack([torch.randperm(S) % ways for _ in range(T)])


def prototypes(saved: Saved, S: int, N: int, D: int) -> None:
    T, labels = 3, labels_of(3, S, N)
    support, cotangent = saved.randn(T, S, D), saved.randn(T, N, D)
    saved.numbers(T, S, N, D)
    saved.arrays(support, labels)
    value, gradient = saved.both(
        lambda x, dout: values_and_grads(lambda x: fastmeta.prototypes(x, labels, N), [x], [dout]), [support, cotangent]
    )
    saved.results(value)
    saved.arrays(cotangent)
    saved.results(gradient)


def distances(saved: Saved, metric: str, T: int, Q: int, N: int, D: int, shared: bool = False) -> list[Tensor]:
    """Queries, prototypes and temperatures of each task; the first query is at a prototype."""
    centres = 3 + (saved.randn(N, D).expand(T, N, D) if shared else saved.randn(T, N, D))
    query = 3 + saved.randn(T, Q, D)
    query[:, 0] = centres[:, 0]
    saved.numbers(T, Q, N, D, 0 if shared else N * D, METRICS.index(metric), TEMPERATURE)
    saved.arrays(query, centres[0] if shared else centres)
    return [query, centres, torch.full((T,), TEMPERATURE, dtype=saved.dtype)]


def proto_loss(saved: Saved, metric: str, T: int, Q: int, N: int, D: int, shared: bool = False) -> None:
    leaves = distances(saved, metric, T, Q, N, D, shared)
    targets = torch.randint(0, N, (T, Q))
    targets[:, 1] = -100
    saved.arrays(targets, 1 / (targets != -100).sum(-1).double())

    def loss(query: Tensor, prototypes: Tensor, temperature: Tensor, targets: Tensor) -> Tensor:
        return fastmeta.proto_loss(query, prototypes, targets.long(), metric=metric, temperature=temperature)

    saved.results(*saved.both(per_task(loss, 4), [*leaves, targets.to(saved.dtype)])[:-1])


def scores(saved: Saved, score: Callable, leaves: list[Tensor], ways: int) -> None:
    T, Q, N = *leaves[0].shape[:2], leaves[1].shape[1]
    cotangent = saved.randn(T, Q, ways)
    value, *gradients = saved.both(per_task(score, len(leaves)), [*leaves, cotangent])
    saved.arrays(torch.zeros(T, Q, N))
    saved.results(value)
    saved.arrays(cotangent)
    saved.results(*gradients[:3])


def proto_log_softmax(saved: Saved, metric: str, *shape: int) -> None:
    def score(query: Tensor, prototypes: Tensor, temperature: Tensor) -> Tensor:
        return fastmeta.proto_log_softmax(query, prototypes, metric=metric, temperature=temperature)

    scores(saved, score, distances(saved, metric, *shape), shape[2])


def matching_log_probs(saved: Saved, metric: str, ways: int, *shape: int) -> None:
    leaves, labels = distances(saved, metric, *shape), labels_of(shape[0], shape[2], ways)
    saved.numbers(ways)
    saved.arrays(labels)

    def score(query: Tensor, support: Tensor, temperature: Tensor, labels: Tensor) -> Tensor:
        return fastmeta.matching_log_probs(query, support, labels.long(), ways, metric=metric, temperature=temperature)

    scores(saved, score, [*leaves, labels.to(saved.dtype)], ways)


def sgd_step(saved: Saved, tasks: int, size: int, shared_param: bool, rate_kind: int) -> None:
    """rate_kind: 0: a number, 1: one for each element, 2: for each of each task."""
    param = saved.randn(*((size,) if shared_param else (tasks, size)))
    rate = saved.randn(*([(1,), (size,), (tasks, size)][rate_kind]))
    grad, dout = saved.randn(tasks, size), saved.randn(tasks, size)
    saved.numbers(tasks, size, shared_param, rate_kind)
    saved.arrays(param, grad, rate, dout)

    out, dparam, *rest = saved.both(
        lambda *xs: values_and_grads(lambda p, g, a: p - a * g, xs[:3], xs[3:]), [param, grad, rate, dout]
    )
    saved.results(out, dparam if shared_param else None, *rest)


def momentum_step(saved: Saved, momentum: float, decay: float, nesterov: bool, *shape: int) -> None:
    def step(*xs: Tensor) -> object:
        return fastmeta.momentum_step(*xs, momentum=momentum, weight_decay=decay, nesterov=nesterov)

    stateful(saved, step, (decay, momentum, 0, 0, 0, 0, 0, nesterov), 1, *shape)


def adam_step(saved: Saved, step: int, betas: tuple[float, float], decay: float, *shape: int) -> None:
    eps, corrections = 1e-3, [1 - beta**step for beta in betas]

    def adam(p: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: Tensor) -> object:
        return fastmeta.adam_step(p, g, m, v, lr, step=step, betas=betas, eps=eps, weight_decay=decay)

    stateful(saved, adam, (decay, 0, *betas, eps, *corrections, 0), 2, *shape)


def stateful(
    saved: Saved, step: Callable, numbers: tuple[float, ...], states: int, tasks: int, size: int, *spreads: int
) -> None:
    """spreads: of parameter, gradient, state, rate; 0: a number, 1: [size], shared by the tasks, 2: [tasks, size]."""
    inputs = [saved.randn(*[(), (size,), (tasks, size)][spread]) for spread in spreads]
    if states == 2:
        inputs[3] = inputs[3].square()
    cotangents = [saved.randn(tasks, size) for _ in range(1 + states)]
    saved.numbers(*numbers, tasks, size)
    for spread, x in zip(spreads, inputs, strict=True):
        saved.numbers(spread)
        saved.arrays(x)
    saved.arrays(*cotangents)

    def run(*xs: Tensor) -> list[Tensor]:
        return values_and_grads(step, xs[: len(inputs)], xs[len(inputs) :])

    saved.results(*saved.both(run, [*inputs, *cotangents]))


FAMILIES: dict[Callable, list[tuple]] = {  # in the order of `families` in driver.cpp
    prototypes: [(25, 5, 37), (7, 1, 1), (40, 20, 64)],
    proto_log_softmax: [("euclidean", 2, 19, 5, 37), ("sqeuclidean", 1, 33, 20, 50, True), ("cosine", 2, 5, 8, 16)],
    proto_loss: [
        ("euclidean", 2, 35, 5, 64),
        ("sqeuclidean", 3, 19, 4, 131),
        ("cosine", 2, 18, 5, 33),
        ("euclidean", 2, 3, 8, 7),
        ("euclidean", 1, 20, 70, 150),
        ("sqeuclidean", 2, 17, 13, 21, True),
    ],
    matching_log_probs: [("cosine", 5, 2, 17, 25, 37), ("euclidean", 3, 2, 5, 6, 16)],
    sgd_step: [(3, 37, True, 0), (3, 600, True, 1), (2, 5, False, 2), (1, 129, False, 0), (4, 33, True, 2)],
    momentum_step: [
        (0.9, 0.1, False, 3, 600, 1, 2, 2, 0),
        (0.8, 0.0, True, 2, 37, 1, 2, 1, 1),
        (0.9, 0.2, True, 1, 5, 2, 2, 2, 2),
    ],
    adam_step: [(1, (0.9, 0.99), 0.0, 3, 600, 1, 2, 1, 2, 1), (4, (0.8, 0.9), 0.1, 2, 37, 2, 2, 2, 2, 0)],
    mlp: [
        ("relu", (33, 20, 5), "cross_entropy", "scalar", 2, True),
        ("tanh", (7, 40, 9, 3), "mse", "per tensor and step", 3, False),
        ("gelu", (5, 16, 4), "mse", "per element", 2, True),
        ("sigmoid", (20, 13, 2), "cross_entropy", "per step", 2, False),
        ("identity", (100, 5), "cross_entropy", "per tensor", 3, True),
        ("relu", (9, 24, 6), "mse", "scalar", 1, True, True),
    ],
    conv: [
        ("Conv4", 20, "cross_entropy", "scalar", True),
        ("group norm", 8, "mse", "per element", False),
        ("no norm", 5, "cross_entropy", "per tensor and step", True),
        ("strides", 17, "mse", "per tensor", False),
    ],
    conv_features: [
        ("Conv4", 20),
        ("group norm", 4),
        ("no norm", 6),
        ("no norm", 6, True),
        ("strides", 33),
        ("residual", 17),
    ],
}
# Of these families too, and drawn last: the numbers of the others stay.
LATER = {
    mlp: [
        ("silu", (5, 16, 4), "mse", "scalar", 2, True),
        ("leaky_relu", (5, 16, 4), "cross_entropy", "scalar", 2, True),
        ("sine", (5, 16, 4), "mse", "scalar", 2, True),
    ],
}


def save(path: Path) -> int:
    """How many."""
    torch.manual_seed(0)
    saved, count = Saved(), 0
    with fastmeta.backend("reference"):
        for family, problems in (*FAMILIES.items(), *LATER.items()):
            index = [*FAMILIES].index(family)
            for arguments in problems:
                for dtype in (torch.float32, torch.float64):
                    saved.problem(index, functools.partial(family, saved, *arguments), dtype)
                    count += 1
    saved.write(path)
    return count


if __name__ == "__main__":
    print(save(Path(sys.argv[1])))

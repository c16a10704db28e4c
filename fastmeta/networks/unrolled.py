"""Inner SGD task by task through autograd or torch.func, as a paper writes it: what `chain` is held against, of every order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .._torch import is_functional
from ..inner.sgd_step import sgd_step
from .batch_norm import ExactNorms
from .chain import twice_differentiable
from .inner_problem import Flat, Problem


def adapted(problem: Problem, flat: Flat) -> tuple[Tensor, ...]:
    """theta_K of every task, [T, ...]."""
    with _exact():
        found = [_adapt(problem, part) for part in flat.parts(1, problem.of_tasks)]
        return tuple(torch.stack(p) for p in zip(*found, strict=True))


def on_query(problem: Problem, flat: Flat) -> Tensor:
    """[T] losses for a query (x, y), [T, Q, ...] outputs for (x) alone."""
    with _exact():
        return torch.stack([_of_query(problem, part) for part in flat.parts(1, problem.of_tasks)])


def _of_query(problem: Problem, part: Flat) -> Tensor:
    query = part.data[2:]
    if problem.weights is None or len(query) == 1:
        return problem.call(_adapt(problem, part), part.shared, *query)
    losses = (problem.call(theta, part.shared, *query) for theta in _steps(problem, part))
    return torch.stack([weight * loss for weight, loss in zip(problem.weights, losses, strict=True)]).sum()


def _adapt(problem: Problem, part: Flat) -> Sequence[Tensor]:
    return [part.theta, *_steps(problem, part)][-1]


def _steps(problem: Problem, part: Flat) -> Iterator[Sequence[Tensor]]:
    """The parameters after each step."""
    theta: Sequence[Tensor] = part.theta
    for k in range(problem.steps):
        grads = _gradients(problem, theta, part)
        theta = sgd_step(list(theta), list(grads), problem.rates_at(part.rates, k))
        yield theta


def _gradients(problem: Problem, theta: Sequence[Tensor], part: Flat) -> Sequence[Tensor]:
    support = part.data[:2]
    if not theta:
        return ()
    if is_functional() or torch.compiler.is_compiling():
        grads: Sequence[Tensor] = torch.func.grad(lambda p: problem.call(p, part.shared, *support))(tuple(theta))
        return [g.detach() for g in grads] if problem.first_order else grads
    with_graph = torch.is_grad_enabled() and not problem.first_order
    with torch.enable_grad():
        leaves = [p if p.requires_grad else p.detach().requires_grad_() for p in theta]
        loss = problem.call(leaves, part.shared, *support)
        return torch.autograd.grad(loss, leaves, create_graph=with_graph, allow_unused=True, materialize_grads=True)


@contextlib.contextmanager
def _exact() -> Iterator[None]:
    """What torch differentiates wrongly, or not twice, is replaced."""
    with twice_differentiable(), ExactNorms():
        yield

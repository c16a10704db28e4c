"""Inner SGD task by task through autograd or torch.func, as a paper writes it: what `chain` is held against, of every order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

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


def on_query(problem: Problem, flat: Flat) -> Any:
    """[T] losses for a query (x, y), with the outputs, without a graph, where they are asked for; [T, Q, ...] outputs for (x) alone."""
    with _exact():
        found = zip(*(_of_query(problem, part) for part in flat.parts(1, problem.of_tasks)), strict=True)
        value, *outputs = (torch.stack(of_tasks) for of_tasks in found)
    return (value, outputs[0].detach()) if outputs else value


def _of_query(problem: Problem, part: Flat) -> tuple[Tensor, ...]:
    query = part.data[2:]

    def call(theta: Sequence[Tensor]) -> tuple[Tensor, ...]:
        found = problem.call(theta, part.shared, *query, return_outputs=problem.return_outputs)
        return found if isinstance(found, tuple) else (found,)

    if problem.weights is None or len(query) == 1:
        return call(_adapt(problem, part))
    values = [call(theta) for theta in _steps(problem, part)]
    losses = [weight * value[0] for weight, value in zip(problem.weights, values, strict=True)]
    return torch.stack(losses).sum(), *values[-1][1:]


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

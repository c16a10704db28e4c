"""The meta-gradient of any module, as autograd's Functions. They compute by the chain; where a gradient's own graph is asked for,
`unrolled` takes their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._autograd import gradients, is_autocast, scatter, without_autocast
from .._torch import any_requires_grad
from ..inner.sgd_step import sgd_step
from . import unrolled
from .chain import InnerLoop, Step, drew, leaf, noise_of, refuse_captured
from .inner_problem import Flat, Problem
from .tasks_at_once import graphs_kept


def query_losses(problem: Problem, flat: Flat) -> Any:
    """[T], after the inner steps; with the query outputs, without a graph, where they are asked for."""
    if needs_gradient(flat):
        found = MetaLoss.apply(problem, *flat.items())
    else:
        found = _meta_losses(problem, flat, problem.flat([False] * len(flat.items())))[0]
    return found if problem.return_outputs else found[0]


def query_outputs(problem: Problem, flat: Flat) -> Tensor:
    """[T, Q, ...], after the inner steps."""
    support = flat._replace(data=flat.data[:2])
    if needs_gradient(support):
        theta = Adapt.apply(problem, *support.items())
    else:
        theta = adapted(problem, support, problem.flat([False] * len(support.items())))[0]
    return problem.on_query(theta, flat)


def needs_gradient(flat: Flat) -> bool:
    return torch.is_grad_enabled() and any_requires_grad(*flat.items())


def _meta_losses(problem: Problem, flat: Flat, needs: Flat) -> tuple[tuple[Tensor, ...], list[list[Tensor]]]:
    """The losses [T], and the query outputs where they are asked for; the gradients that are wanted of each part of the tasks."""
    graphs = graphs_kept(problem, flat) if any(needs.items()) else 0
    values, grads = [], []
    for i, part in enumerate(problem.parts(flat)):
        value, found = _meta_loss(problem, part, needs, graphs, check=i == 0)
        values.append(value)
        grads.append(found)
    return tuple(problem.join(x) for x in zip(*values, strict=True)), grads


def _meta_loss(
    problem: Problem, part: Flat, needs: Flat, graphs: int, check: bool
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    inner = InnerLoop(problem, part._replace(data=part.data[:2]), needs._replace(data=needs.data[:2]))
    differentiated = any(needs.items())
    visited: list[Sequence[Tensor]] = []

    def update(theta: list[Tensor], grads: list[Tensor], rates: Any) -> Sequence[Tensor]:
        visited.append(sgd_step(theta, grads, rates))
        return visited[-1]

    if problem.weights is None:
        counted = {problem.steps: (1.0, inner.descend(graphs=graphs))}
    else:
        inner.descend(graphs=graphs, update=update)
        pairs = zip(problem.weights, visited, strict=True)
        counted = {
            k: (weight, list(theta)) for k, (weight, theta) in enumerate(pairs, 1) if weight or k == problem.steps
        }
    query = [leaf(x, need) for x, need in zip(part.data[2:], needs.data[2:], strict=True)]
    wanted = [x for x in query if x.requires_grad]
    total: Any = 0.0
    joining: dict[int, Sequence[Tensor]] = {}
    rest = []
    for k, (weight, values) in counted.items():
        theta = [leaf(p, True) for p in values]
        with torch.set_grad_enabled(differentiated):
            of_query, *outputs = inner.on_query(theta, query)
            losses = weight * of_query
            total = total + losses.detach()
            if not differentiated:
                continue
            inputs = [*theta, *inner.others, *wanted]
            if check:
                refuse_captured(losses, inputs)
            found = gradients([losses.sum()], inputs)
        joining[k] = found[: len(theta)]
        rest.append(found[len(theta) :])
    value = (total, *[y.detach() for y in outputs])  # of the last step
    if not differentiated:
        return value, []
    others = [sum(of_steps) for of_steps in zip(*rest, strict=True)]
    m = len(inner.others)
    return value, [*inner.back(joining[problem.steps], others[:m], joining), *others[m:]]


def adapted(problem: Problem, flat: Flat, needs: Flat) -> tuple[tuple[Tensor, ...], list[list[Step]]]:
    """theta_K [T, ...], and the steps of each part of the tasks."""
    found, taken = [], []
    for i, part in enumerate(problem.parts(flat)):
        inner = InnerLoop(problem, part, needs)
        found.append(inner.descend(check=i == 0))
        taken.append(inner.taken)
    return tuple(problem.join(p) for p in zip(*found, strict=True)), taken


class MetaLoss(torch.autograd.Function):
    """Forward computes each task's whole meta-gradient too; backward scales it and adds up the tasks."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, *items: Any) -> tuple[Tensor, ...]:
        before = noise_of(items[-1])
        value, grads = _meta_losses(problem, problem.flat(items), problem.flat(ctx.needs_input_grad[1:]))
        ctx.drew = drew(before, items[-1])
        remember(ctx, replace(problem, return_outputs=False), items, [g for part in grads for g in part])
        ctx.mark_non_differentiable(*value[1:])
        return value

    @staticmethod
    def backward(ctx: Any, dlosses: Tensor, *_: Tensor) -> Any:
        problem, needs = ctx.problem, ctx.needs_input_grad[1:]
        items, grads = remembered(ctx)
        if torch.is_grad_enabled():
            refuse_changed(ctx)
            return None, *differentiable(ctx, lambda *args: (unrolled.on_query(*args),), items, (dlosses,))
        scales = problem.split(dlosses)
        places = [i for i, need in enumerate(needs) if need]
        found = []
        for i, place in enumerate(places):
            parts = grads[i :: len(places)]
            if problem.has_tasks(place, len(items), data=4):
                each = [g * d.reshape(*d.shape, *[1] * (g.ndim - d.ndim)) for g, d in zip(parts, scales, strict=True)]
                found.append(problem.join(each))
                continue
            total = torch.zeros_like(items[place])
            for g, d in zip(parts, scales, strict=True):
                total = total + torch.tensordot(d, g, 1) if d.ndim else total.addcmul_(g, d)
            found.append(total)
        return None, *scatter(found, needs)


class Adapt(torch.autograd.Function):
    """The parameters after the inner steps, [T, ...]; backward computes every step again and runs the chain."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, *items: Any) -> Any:
        before, device = noise_of(items[-1]), items[-1].device.type
        theta, taken = adapted(problem, problem.flat(items), problem.flat(ctx.needs_input_grad[1:]))
        ctx.noises = [[step.noise for step in steps] for steps in taken]
        ctx.autocast = (device, torch.get_autocast_dtype(device)) if is_autocast(device) else None
        ctx.drew = drew(before, items[-1])
        remember(ctx, problem, items, [p for steps in taken for step in steps for p in step.theta])
        return theta

    @staticmethod
    def backward(ctx: Any, *dadapted: Tensor) -> Any:
        problem, needs = ctx.problem, ctx.needs_input_grad[1:]
        items, trajectory = remembered(ctx)
        refuse_changed(ctx)
        if torch.is_grad_enabled():
            return None, *differentiable(ctx, unrolled.adapted, items, dadapted)
        flat, thetas, grads = problem.flat(items), iter(trajectory), []
        cotangents = zip(*(problem.split(d) for d in dadapted), strict=True)
        with torch.autocast(*ctx.autocast) if ctx.autocast else without_autocast(dadapted[0]):
            for part, v, noises in zip(problem.parts(flat), cotangents, ctx.noises, strict=True):
                inner = InnerLoop(problem, part, problem.flat(needs))
                inner.taken = [Step([leaf(next(thetas), True) for _ in flat.theta], noise) for noise in noises]
                grads.append(inner.back(v, [torch.zeros_like(x) for x in inner.others]))
        return None, *scatter(problem.summed(grads, needs, data=2), needs)


def remember(ctx: Any, problem: Problem, items: Sequence[Any], others: Sequence[Tensor]) -> None:
    ctx.problem, ctx.run = problem, None if problem.seen is None else problem.seen.run_now()
    ctx.numbers = [None if isinstance(x, Tensor) else x for x in items]
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in items), *others)


def remembered(ctx: Any) -> tuple[list[Any], list[Tensor]]:
    """The items, and the others."""
    kept = list(ctx.saved_tensors)  # once: a checkpoint recomputes at every access
    count = len(ctx.numbers)
    return [x if n is None else n for x, n in zip(kept[:count], ctx.numbers, strict=True)], kept[count:]


def refuse_changed(ctx: Any) -> None:
    """RuntimeError where what is computed again on the way back would be computed by another network than on the way there."""
    seen = ctx.problem.seen
    if seen is not None and not seen.same_run(ctx.run):
        raise RuntimeError(
            f"{ctx.problem.learner}: the model must stay as it is until the way back, got one that was changed after the forward pass"
        )


def differentiable(
    ctx: Any, function: Callable[..., Any], items: Sequence[Any], cotangents: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradients with a graph of their own."""
    problem, needs = ctx.problem, ctx.needs_input_grad[1:]
    if ctx.drew:
        raise RuntimeError(
            f"{problem.learner}: a derivative of the meta-gradient needs a model that draws no random numbers, got one that does"
        )
    fresh = [x.view_as(x) if need else x for x, need in zip(items, needs, strict=True)]  # none depends on another
    wanted = [x for x, need in zip(fresh, needs, strict=True) if need]
    outputs = function(problem, problem.flat(fresh))
    found = gradients(outputs, wanted, cotangents, create_graph=True)
    return scatter(found, needs)

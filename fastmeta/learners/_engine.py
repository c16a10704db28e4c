"""The inner loop of any module, with its meta-gradient: task by task or several tasks at once, no graph over the steps.

The two Functions compute by `InnerLoop`. Where a gradient's own graph is asked for, under torch.func, forward-mode AD and
torch.compile, and where the loss depends on tensors of its own, `_unrolled` takes their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .._autograd import scatter
from .._dispatch import refuse_export
from .._torch import any_requires_grad, is_functional
from ..inner.sgd_step import sgd_step
from . import _unrolled
from ._at_once import run_at_once
from ._chain import Captured, InnerLoop, Step, gradients, leaf, noise_of, refuse_captured
from ._cost import graphs_kept
from ._episode import check_classes
from ._problem import Flat, Problem
from ._remember import differentiable, drew, refuse_changed, remember, remembered


def on_query(problem: Problem, rates: Any, *data: Tensor, start: Sequence[Tensor] = ()) -> Tensor:
    """After the inner steps on data[:2] each task's outputs for the query data[2], [T, Q, ...], or, with its targets data[3],
    the loss [T]. `start`: what the last of the adapted parameters start from, [T, ...]."""
    return run(_losses if len(data) == 4 else _outputs, _unrolled.on_query, problem, rates, data, start)


def run(
    function: Callable[[Problem, Flat], Tensor],
    unrolled: Callable[[Problem, Flat], Tensor],
    problem: Problem,
    rates: Any,
    data: tuple[Tensor, ...],
    start: Sequence[Tensor] = (),
) -> Tensor:
    """`function` with the best `at_once`; `unrolled` where it cannot run."""
    refuse_export(problem.learner)
    plan = problem.plan
    params = dict(plan.task.named_parameters())
    own = problem.adapted[: len(problem.adapted) - len(start)]
    theta, shared = (*(params[path] for path in own), *start), tuple(params[path] for path in problem.shared)
    flat = Flat(theta, shared, tuple(rates) if isinstance(rates, list) else (rates,), data)
    if is_functional() or torch.compiler.is_compiling():
        return unrolled(problem, flat)
    classes = plan.classes
    if classes is not None:  # a kernel's network says it before it runs
        check_classes(problem.learner, classes, *data[1::2])
    if torch.is_inference_mode_enabled():  # there not even an inner loop has a gradient
        with torch.inference_mode(False), torch.no_grad():
            found = _by_autograd(function, unrolled, problem, Flat(*tree_map_only(Tensor, _ordinary, tuple(flat))))
    else:
        found = _by_autograd(function, unrolled, problem, flat)
    if classes is None and plan.task.classes:
        check_classes(problem.learner, plan.task.classes[0], *data[1::2])
    return found


def _by_autograd(
    function: Callable[[Problem, Flat], Tensor],
    unrolled: Callable[[Problem, Flat], Tensor],
    problem: Problem,
    flat: Flat,
) -> Tensor:
    try:
        return run_at_once(function, problem, flat)
    except Captured:
        return unrolled(problem, flat)


def _ordinary(x: Tensor) -> Tensor:
    """`x` as a tensor that autograd takes."""
    return x.clone() if x.is_inference() else x


def _losses(problem: Problem, flat: Flat) -> Tensor:
    if needs_gradient(flat):
        losses: Tensor = MetaLoss.apply(problem, *flat.items())
        return losses
    return _meta_losses(problem, flat, problem.flat([False] * len(flat.items())))[0]


def _outputs(problem: Problem, flat: Flat) -> Tensor:
    support = flat._replace(data=flat.data[:2])
    if needs_gradient(support):
        theta = Adapt.apply(problem, *support.items())
    else:
        theta = adapted(problem, support, problem.flat([False] * len(support.items())))[0]
    return of_query(problem, theta, flat)


def needs_gradient(flat: Flat) -> bool:
    return torch.is_grad_enabled() and any_requires_grad(*flat.items())


def of_query(problem: Problem, theta: Sequence[Tensor], flat: Flat) -> Tensor:
    """[T, Q, ...] outputs, or [T] losses where the query has targets, of the parameters theta [T, ...]."""
    query = flat.data[2:]
    if problem.at_once > 1:
        return problem.call_tasks(theta, flat.shared, *query, own=False)
    tasks = zip(*theta, *query, strict=True)
    n = len(theta)
    return torch.stack([problem.call(of_task[:n], flat.shared, *of_task[n:]) for of_task in tasks])


def _meta_losses(problem: Problem, flat: Flat, needs: Flat) -> tuple[Tensor, list[list[Tensor]]]:
    """The losses [T], and the gradients that are wanted of each part of the tasks."""
    graphs = graphs_kept(problem, flat) if any(needs.items()) else 0
    losses, grads = [], []
    for i, part in enumerate(problem.parts(flat)):
        loss, found = _meta_loss(problem, part, needs, graphs, check=i == 0)
        losses.append(loss)
        grads.append(found)
    return problem.join(losses), grads


def _meta_loss(problem: Problem, part: Flat, needs: Flat, graphs: int, check: bool) -> tuple[Tensor, list[Tensor]]:
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
            losses = weight * inner.losses(theta, query)
            total = total + losses.detach()
            if not differentiated:
                continue
            inputs = [*theta, *inner.others, *wanted]
            if check:
                refuse_captured(losses, inputs)
            found = gradients(losses.sum(), inputs)
        joining[k] = found[: len(theta)]
        rest.append(found[len(theta) :])
    if not differentiated:
        return total, []
    others = [sum(of_steps) for of_steps in zip(*rest, strict=True)]
    m = len(inner.others)
    return total, [*inner.back(joining[problem.steps], others[:m], joining), *others[m:]]


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
    def forward(ctx: Any, problem: Problem, *items: Any) -> Tensor:
        before = noise_of(items[-1])
        losses, grads = _meta_losses(problem, problem.flat(items), problem.flat(ctx.needs_input_grad[1:]))
        ctx.problem, ctx.drew = problem, drew(before, items[-1])
        remember(ctx, items, [g for part in grads for g in part])
        return losses

    @staticmethod
    def backward(ctx: Any, dlosses: Tensor) -> Any:
        problem, needs = ctx.problem, ctx.needs_input_grad[1:]
        items, grads = remembered(ctx)
        if torch.is_grad_enabled():
            refuse_changed(problem)
            return None, *differentiable(ctx, lambda *args: (_unrolled.on_query(*args),), items, (dlosses,))
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
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        ctx.problem, ctx.drew = problem, drew(before, items[-1])
        remember(ctx, items, [p for steps in taken for step in steps for p in step.theta])
        return theta

    @staticmethod
    def backward(ctx: Any, *dadapted: Tensor) -> Any:
        problem, needs = ctx.problem, ctx.needs_input_grad[1:]
        items, trajectory = remembered(ctx)
        refuse_changed(problem)
        if torch.is_grad_enabled():
            return None, *differentiable(ctx, _unrolled.adapted, items, dadapted)
        flat, thetas, grads = problem.flat(items), iter(trajectory), []
        cotangents = zip(*(problem.split(d) for d in dadapted), strict=True)
        with torch.autocast(*ctx.autocast):
            for part, v, noises in zip(problem.parts(flat), cotangents, ctx.noises, strict=True):
                inner = InnerLoop(problem, part, problem.flat(needs))
                inner.taken = [Step([leaf(next(thetas), True) for _ in flat.theta], noise) for noise in noises]
                grads.append(inner.back(v, [torch.zeros_like(x) for x in inner.others]))
        return None, *scatter(problem.summed(grads, needs, data=2), needs)

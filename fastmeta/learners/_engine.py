"""The inner loop of any module, with its meta-gradient: task by task or several tasks at once, no graph over the steps.

The two Functions compute by `InnerLoop`. Where a gradient's own graph is asked for, under torch.func, forward-mode AD and
torch.compile, and where the loss depends on tensors of its own, `_unrolled` takes their place.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .._autograd import _requires_grad, _transforms_active, scatter
from . import _unrolled
from ._chain import Captured, InnerLoop, Step, gradients, leaf, noise_of, refuse_captured
from ._problem import Flat, Problem

_functorch: Any = torch._C._functorch
_one_by_one: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # models that torch.vmap refused
GRAPH_RATIO = 3  # the graph of a support example's gradient is as large as those of three query examples


def query_losses(problem: Problem, rates: Any, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
    """[T], each task's loss on the query after its inner steps."""
    return _run(_losses, problem, rates, (sx, sy, qx, qy))


def adapted_outputs(problem: Problem, rates: Any, sx: Tensor, sy: Tensor, qx: Tensor) -> Tensor:
    """[T, Q, ...], the outputs for the query after the inner steps."""
    return _run(_outputs, problem, rates, (sx, sy, qx))


def _run(function: Callable, problem: Problem, rates: Any, data: tuple[Tensor, ...]) -> Tensor:
    if not len(data[0]):
        raise ValueError(f"{problem.learner}: support_x must hold at least one task, got shape {list(data[0].shape)}")
    params = dict(problem.task.named_parameters())
    theta, shared = (tuple(params[path] for path in paths) for paths in (problem.adapted, problem.shared))
    flat = Flat(theta, shared, tuple(rates) if isinstance(rates, list) else (rates,), data)
    if _transforms_active() or forward_ad._current_level >= 0 or torch.compiler.is_compiling():
        return _unrolled.on_query(problem, flat)
    model = problem.task.model
    refused = False
    try:
        if _fits_vmap(model, data[0]) and model not in _one_by_one:
            try:
                with _no_slow_vmap():
                    return function(problem, flat, True)
            except (RuntimeError, NotImplementedError):
                refused = True  # or what fails one by one as well, and then says so
        found = function(problem, flat, False)
    except Captured:
        return _unrolled.on_query(problem, flat)
    if refused:
        _one_by_one.add(model)
    return found


def _fits_vmap(model: nn.Module, x: Tensor) -> bool:
    """Whether several tasks at once are faster than one after the other: not for convolutions on a CPU, whose weights differ."""
    convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules())
    return len(x) > 1 and not (convolves and x.is_cpu)


@contextlib.contextmanager
def _no_slow_vmap() -> Iterator[None]:
    """An operator without a rule for vmap raises, instead of running in a loop of vmap's own."""
    allowed = _functorch._is_vmap_fallback_enabled()
    _functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        _functorch._set_vmap_fallback_enabled(allowed)


def _losses(problem: Problem, flat: Flat, several: bool) -> Tensor:
    items = flat.items()
    if torch.is_grad_enabled() and _requires_grad(items):
        return MetaLoss.apply(problem, several, *items)
    return _meta_losses(problem, flat, problem.flat([False] * len(items)), several)[0]


def _outputs(problem: Problem, flat: Flat, several: bool) -> Tensor:
    support = flat._replace(data=flat.data[:2])
    items = support.items()
    if torch.is_grad_enabled() and _requires_grad(items):
        theta = Adapt.apply(problem, several, *items)
    else:
        loops = [
            InnerLoop(problem, part, problem.flat([False] * len(items)), several)
            for part in _parts(problem, support, several)
        ]
        theta = [_join(p, several) for p in zip(*(loop.descend() for loop in loops), strict=True)]
    query = flat.data[2]
    if several:
        return torch.vmap(problem.call, (0, None, 0), randomness="different")(list(theta), list(flat.shared), query)
    return torch.stack([problem.call(params, flat.shared, x) for *params, x in zip(*theta, query, strict=True)])


def _meta_losses(problem: Problem, flat: Flat, needs: Flat, several: bool) -> tuple[Tensor, list[Tensor]]:
    """The losses [T], and for each task the gradients that are wanted, [T, ...]."""
    losses, grads = [], []
    for i, part in enumerate(_parts(problem, flat, several)):
        loss, found = _meta_loss(problem, part, needs, several, check=i == 0)
        losses.append(loss)
        grads.append(found)
    return _join(losses, several), [_join(g, several) for g in zip(*grads, strict=True)]


def _meta_loss(problem: Problem, part: Flat, needs: Flat, several: bool, check: bool) -> tuple[Tensor, list[Tensor]]:
    inner = InnerLoop(problem, part._replace(data=part.data[:2]), needs._replace(data=needs.data[:2]), several)
    axis = int(several)
    shots, queries = part.data[0].shape[axis], part.data[2].shape[axis]
    theta = [leaf(p, True) for p in inner.descend(graphs=max(1, queries // max(GRAPH_RATIO * shots, 1)))]
    query = [leaf(x, need) for x, need in zip(part.data[2:], needs.data[2:], strict=True)]
    if not any(needs.items()):
        with torch.no_grad():
            return inner.losses(theta, query), []
    with torch.enable_grad():
        losses = inner.losses(theta, query)
        inputs = [*theta, *inner.others, *(x for x in query if x.requires_grad)]
        if check:
            refuse_captured(losses, inputs)
        found = gradients(losses.sum(), inputs)
    n, m = len(theta), len(theta) + len(inner.others)
    return losses.detach(), [*inner.back(found[:n], found[n:m]), *found[m:]]


def _parts(problem: Problem, flat: Flat, several: bool) -> Iterator[Flat]:
    return flat.parts(several, problem.task_chunk)


def _join(pieces: Sequence[Tensor], several: bool) -> Tensor:
    return torch.cat(tuple(pieces)) if several else torch.stack(tuple(pieces))


class MetaLoss(torch.autograd.Function):
    """Forward computes each task's whole meta-gradient too; backward scales it and adds up the tasks."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, several: bool, *items: Any) -> Tensor:
        before = noise_of(items[-1])
        losses, grads = _meta_losses(problem, problem.flat(items), problem.flat(ctx.needs_input_grad[2:]), several)
        _remember(ctx, problem, before, items, grads)
        return losses

    @staticmethod
    def backward(ctx: Any, dlosses: Tensor) -> Any:
        needs = ctx.needs_input_grad[2:]
        items, grads = _remembered(ctx)
        if torch.is_grad_enabled():
            return None, None, *_differentiable(ctx, lambda *args: (_unrolled.on_query(*args),), items, (dlosses,))
        of_tasks = len(items) - 4  # the data has a task axis
        found = []
        for place, grad in zip((i for i, need in enumerate(needs) if need), grads, strict=True):
            scale = dlosses.to(grad.dtype)
            per_task = scale.reshape(-1, *[1] * (grad.ndim - 1))
            found.append(grad * per_task if place >= of_tasks else torch.tensordot(scale, grad, 1))
        return None, None, *scatter(found, needs)


class Adapt(torch.autograd.Function):
    """The parameters after the inner steps, [T, ...]; backward computes every step again and runs the chain."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, several: bool, *items: Any) -> Any:
        before, needs = noise_of(items[-1]), problem.flat(ctx.needs_input_grad[2:])
        adapted, taken = [], []
        for i, part in enumerate(_parts(problem, problem.flat(items), several)):
            inner = InnerLoop(problem, part, needs, several)
            adapted.append(inner.descend(check=i == 0))
            taken.append(inner.taken)
        device = items[-1].device.type
        ctx.several, ctx.noises = several, [[step.noise for step in steps] for steps in taken]
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        _remember(ctx, problem, before, items, [p for steps in taken for step in steps for p in step.theta])
        return tuple(_join(p, several) for p in zip(*adapted, strict=True))

    @staticmethod
    def backward(ctx: Any, *dadapted: Tensor) -> Any:
        problem, several, needs = ctx.problem, ctx.several, ctx.needs_input_grad[2:]
        items, trajectory = _remembered(ctx)
        if torch.is_grad_enabled():
            return None, None, *_differentiable(ctx, _unrolled.adapted, items, dadapted)
        flat, thetas, grads, begin = problem.flat(items), iter(trajectory), [], 0
        with torch.autocast(*ctx.autocast):
            for part, noises in zip(_parts(problem, flat, several), ctx.noises, strict=True):
                inner = InnerLoop(problem, part, problem.flat(needs), several)
                inner.taken = [
                    Step([next(thetas).detach().requires_grad_() for _ in flat.theta], noise) for noise in noises
                ]
                count = len(part.data[0]) if several else 1
                v = [d[begin : begin + count] if several else d[begin] for d in dadapted]
                grads.append(inner.back(v, [torch.zeros_like(x) for x in inner.others]))
                begin += count
        found = []
        for place, pieces in zip((i for i, need in enumerate(needs) if need), zip(*grads, strict=True), strict=True):
            whole = _join(pieces, several)
            found.append(whole.sum(0) if place < len(items) - 2 else whole)
        return None, None, *scatter(found, needs)


def _remember(ctx: Any, problem: Problem, before: Any, items: Sequence[Any], others: Sequence[Tensor]) -> None:
    ctx.problem, ctx.count = problem, len(items)
    ctx.numbers = [None if isinstance(x, Tensor) else x for x in items]
    now = noise_of(items[-1])
    ctx.drew = any(isinstance(b, Tensor) and not torch.equal(a, b) for a, b in zip(now, before, strict=True))
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in items), *others)


def _remembered(ctx: Any) -> tuple[list[Any], list[Tensor]]:
    kept = list(ctx.saved_tensors)  # once: a checkpoint recomputes at every access
    items = [x if number is None else number for x, number in zip(kept, ctx.numbers, strict=False)]
    return items, kept[ctx.count :]


def _differentiable(
    ctx: Any, unrolled: Callable, items: Sequence[Any], cotangents: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradients with a graph of their own."""
    problem, needs = ctx.problem, ctx.needs_input_grad[2:]
    if ctx.drew:
        raise RuntimeError(
            f"{problem.learner}: a derivative of the meta-gradient needs a model that draws no random numbers, got one that does"
        )
    fresh = [x.view_as(x) if need else x for x, need in zip(items, needs, strict=True)]  # none depends on another
    wanted = [x for x, need in zip(fresh, needs, strict=True) if need]
    outputs = unrolled(problem, problem.flat(fresh))
    found = torch.autograd.grad(
        outputs, wanted, cotangents, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return scatter(found, needs)

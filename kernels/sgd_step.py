"""theta' = theta - alpha * g for a whole list of tensors in one launch; see _tensor_list.py for what a program owns.

Moved: theta, g and theta' once, alpha once, if per element.
Backward: dg = -alpha * d; what tasks share, dtheta = sum d and dalpha = -sum d * g, is summed by the one program that
walks all tasks of its columns; where alpha is one number, each program leaves a partial sum. Where theta is not shared,
dtheta is d itself. Moved: d, g and dg once, alpha and dalpha once, if per element.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import accumulator, launch
from ._tensor_list import (
    DGRAD,
    DRATE,
    DTHETA,
    ELEMENT,
    GROUP,
    PER_TASK,
    SHARED,
    WALK,
    dense_or,
    kind_of,
    make_plan,
    new_like,
    own,
    own_number,
    own_tensor,
    own_tile,
    rate_tile,
    split_numbers,
    tile_limit,
)


@triton.jit
def _forward_tile(
    theta, grad, rate, out, number, kind, task, column, size, total, COLUMNS: tl.constexpr, MASKED: tl.constexpr
):
    if not MASKED:
        size = size // 16 * 16  # so it is, and loads are wide where that is known
    lane = tl.arange(0, COLUMNS)[None, :]
    at = task * size + column  # [TASKS, 1], where the tile's rows begin
    limit = tile_limit(at, column, size, total, COLUMNS, MASKED)
    alpha = rate_tile(rate, number, kind, task, column, lane, limit, size)
    start = task * tl.where((kind & SHARED) != 0, 0, size) + column
    x = tl.load(theta + start + lane, lane < limit, 0.0).to(number.dtype)
    x -= alpha * tl.load(grad + at + lane, lane < limit, 0.0).to(number.dtype)
    tl.store(out + at + lane, x.to(out.dtype.element_ty), lane < limit)


@triton.jit
def _sgd_step_fwd_kernel(
    thetas,
    grads,
    rates,
    outs,
    numbers,
    ends,
    sizes,
    totals,
    kinds,
    dtype: tl.constexpr,
    COUNT: tl.constexpr,
    TASKS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    index, part, size, total, kind = own_tensor(ends, sizes, totals, kinds, COUNT)
    theta, grad, rate, out = own(thetas, index), own(grads, index), own(rates, index), own(outs, index)
    number = own_number(numbers, index, dtype, COUNT)
    corner, column = own_tile(part, size, TASKS, COLUMNS)
    task = corner + tl.arange(0, TASKS)[:, None]
    inside = (column + COLUMNS <= size) & (size % 16 == 0)
    if inside & ((corner + TASKS) * size <= total):
        _forward_tile(theta, grad, rate, out, number, kind, task, column, size, total, COLUMNS, False)
    else:
        _forward_tile(theta, grad, rate, out, number, kind, task, column, size, total, COLUMNS, True)


@triton.jit
def _backward_tiles(tensors, number, kind, bounds, TASKS: tl.constexpr, COLUMNS: tl.constexpr, MASKED: tl.constexpr):
    """dg, and dalpha where it is per element and task; returns the sums over tiles of d and of -d g."""
    dout, grad, rate, dgrad, drate = tensors
    corner, last, column, size, total = bounds
    dtheta_sum = tl.zeros((TASKS, COLUMNS), number.dtype)
    drate_sum = tl.zeros((TASKS, COLUMNS), number.dtype)
    if not MASKED:
        size = size // 16 * 16
    lane = tl.arange(0, COLUMNS)[None, :]
    for start in range(corner, last, TASKS):
        task = start + tl.arange(0, TASKS)[:, None]
        at = task * size + column
        limit = tile_limit(at, column, size, total, COLUMNS, MASKED)
        d = tl.load(dout + at + lane, lane < limit, 0.0).to(number.dtype)
        alpha = rate_tile(rate, number, kind, task, column, lane, limit, size)
        wanted = tl.where((kind & DGRAD) != 0, limit, 0)
        tl.store(dgrad + at + lane, (-alpha * d).to(dgrad.dtype.element_ty), lane < wanted)
        dtheta_sum += d
        wanted = tl.where((kind & DRATE) != 0, limit, 0)
        dalpha = -d * tl.load(grad + at + lane, lane < wanted, 0.0).to(number.dtype)
        wanted = tl.where((kind & PER_TASK) != 0, wanted, 0)
        tl.store(drate + at + lane, dalpha.to(drate.dtype.element_ty), lane < wanted)
        drate_sum += dalpha
    return dtheta_sum, drate_sum


@triton.jit(do_not_specialize=("width",))
def _sgd_step_bwd_kernel(
    douts,
    grads,
    rates,
    dgrads,
    dthetas,
    drates,
    partials,
    numbers,
    ends,
    sizes,
    totals,
    kinds,
    width,
    dtype: tl.constexpr,
    COUNT: tl.constexpr,
    TASKS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    index, part, size, total, kind = own_tensor(ends, sizes, totals, kinds, COUNT)
    dtheta, drate = own(dthetas, index), own(drates, index)
    tensors = own(douts, index), own(grads, index), own(rates, index), own(dgrads, index), drate
    number = own_number(numbers, index, dtype, COUNT)
    corner, column = own_tile(part, size, TASKS, COLUMNS)
    last = tl.where((kind & WALK) != 0, tl.cdiv(total, size), corner + TASKS)
    bounds = corner, last, column, size, total
    inside = (column + COLUMNS <= size) & (size % 16 == 0)
    if inside & (tl.cdiv(last, TASKS) * TASKS * size <= total):
        dtheta_sum, drate_sum = _backward_tiles(tensors, number, kind, bounds, TASKS, COLUMNS, False)
    else:
        dtheta_sum, drate_sum = _backward_tiles(tensors, number, kind, bounds, TASKS, COLUMNS, True)
    lane = column + tl.arange(0, COLUMNS)
    if (kind & DTHETA) != 0:
        tl.store(dtheta + lane, tl.sum(dtheta_sum, 0).to(dtheta.dtype.element_ty), lane < size)
    if (kind & (DRATE | ELEMENT | PER_TASK)) == (DRATE | ELEMENT):
        tl.store(drate + lane, tl.sum(drate_sum, 0).to(drate.dtype.element_ty), lane < size)
    if partials is not None:  # noqa: SIM102
        if (kind & (DRATE | ELEMENT)) == DRATE:
            tl.store(partials + index.to(tl.int64) * width + part, tl.sum(tl.sum(drate_sum, 1), 0))


def sgd_step_fwd(
    params: list[Tensor], grads: list[Tensor], lr: list[float | Tensor], needs: tuple[bool, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    outs = [torch.empty(g.shape, dtype=g.dtype, device=g.device) for g in grads]
    rates = lr * len(params) if len(lr) == 1 else lr
    for i in range(0, len(params), GROUP):
        some = slice(i, i + GROUP)
        gs = [g.contiguous() for g in grads[some]]
        kinds = [kind_of(p, g, r) for p, g, r in zip(params[some], gs, rates[some], strict=True)]
        plan = make_plan(gs, kinds)
        launch(
            _sgd_step_fwd_kernel,
            sum(plan.programs),
            gs[0],
            dense_or(params[some], gs),
            tuple(gs),
            dense_or(rates[some], gs),
            tuple(outs[some]),
            split_numbers(rates[some], gs[0].dtype),
            *plan.table,
            **plan.options,
        )
    return tuple(outs), ()


def sgd_step_bwd(
    cotangents: tuple[Tensor, ...],
    saved: tuple[Tensor, ...],
    params: list[Tensor],
    grads: list[Tensor],
    lr: list[float | Tensor],
    needs: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    count = len(params)
    rates = lr * count if len(lr) == 1 else lr
    need_rates = needs[2 * count :] * (count if len(lr) == 1 else 1)
    of_each = list(zip(needs[:count], needs[count : 2 * count], need_rates, strict=True))
    dparams: list[Tensor] = []
    dgrads: list[Tensor] = []
    drates: list[Tensor] = []
    for i in range(0, count, GROUP):
        some = slice(i, i + GROUP)
        part = _backward_group(cotangents[some], params[some], grads[some], rates[some], of_each[some], len(lr) == 1)
        for all_of, of_group in zip((dparams, dgrads, drates), part, strict=True):
            all_of += of_group
    if len(lr) == 1 and len(drates) > 1:
        drates = [torch.stack(drates).sum(0)]
    return (*dparams, *dgrads, *(r.to(grads[0].dtype) for r in drates))


def _backward_group(
    cotangents: tuple[Tensor, ...],
    params: list[Tensor],
    grads: list[Tensor],
    rates: list[float | Tensor],
    needs: list[tuple[bool, bool, bool]],
    one_rate: bool,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The gradients of params, of grads and of rates that are needed, from one launch."""
    ds, gs = [d.contiguous() for d in cotangents], [g.contiguous() for g in grads]
    kinds = [kind_of(*x) for x in zip(params, gs, rates, needs, strict=True)]
    plan = make_plan(gs, kinds)
    dparams = [new_like(p, g) if k & DTHETA.value else None for p, g, k in zip(params, gs, kinds, strict=True)]
    dgrads = [new_like(g, g) if k & DGRAD.value else None for g, k in zip(gs, kinds, strict=True)]
    drates = [
        new_like(r, g) if need[2] and isinstance(r, Tensor) and r.ndim else None
        for r, g, need in zip(rates, gs, needs, strict=True)
    ]
    width, partials = max(plan.programs), None
    if any(need[2] and own is None for need, own in zip(needs, drates, strict=True)):
        partials = torch.zeros(len(gs), width, dtype=accumulator(gs[0]), device=gs[0].device)
    idle = not any(k & (DGRAD.value | DTHETA.value | DRATE.value) for k in kinds)
    launch(
        _sgd_step_bwd_kernel,
        0 if idle else sum(plan.programs),
        gs[0],
        tuple(ds),
        tuple(gs),
        dense_or(rates, gs),
        dense_or(dgrads, gs),
        dense_or(dparams, gs),
        dense_or(drates, gs),
        partials,
        split_numbers(rates, gs[0].dtype),
        *plan.table,
        width,
        **plan.options,
    )
    for i, (d, p) in enumerate(zip(cotangents, params, strict=True)):
        if needs[i][0] and dparams[i] is None:
            dparams[i] = d if d.shape == p.shape else d.reshape(p.shape)
        if partials is not None and not one_rate and needs[i][2] and drates[i] is None:
            drates[i] = partials[i].sum()
    if partials is not None and one_rate:
        drates = [partials.sum()]
    present = [[x for x in some if x is not None] for some in (dparams, dgrads, drates)]
    return present[0], present[1], present[2]

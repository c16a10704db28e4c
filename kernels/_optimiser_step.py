"""The step of an optimiser for a whole list of tensors in one launch, around the formulas of an op; see _tensor_list.py for what a
program owns.

Moved: theta, g, the state, theta' and the new state once, alpha once, if per element.
Backward: what belongs to each task is stored tile by tile; what tasks share is summed by the one program that walks all tasks of its
columns; where alpha is one number, each program leaves a partial sum. Moved: the cotangents and the gradients asked for once, and what
the formula reads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._tensor_list import (
    ELEMENT,
    SHARED,
    WALK,
    WANTED,
    number_at,
    own,
    own_number,
    own_tensor,
    own_tile,
    rate_tile,
    tile_limit,
)


@triton.jit
def decayed(x, c):
    """g + weight_decay theta; the weight decay is the first of the constants."""
    return tl.where(c[0] == 0, x[1], x[1] + c[0] * x[0])


@triton.jit
def through_decay(dtheta, dg, c):
    """The gradient to theta, of which g has a part."""
    return tl.where(c[0] == 0, dtheta, dtheta + c[0] * dg)


@triton.jit
def _own_of_each(lists, index):
    found = ()
    for k in tl.static_range(len(lists)):
        found += (own(lists[k], index),)
    return found


@triton.jit
def _constants(parts, dtype: tl.constexpr, COUNT: tl.constexpr):
    found = ()
    for i in tl.static_range(COUNT):
        found += (number_at(parts, i, dtype, COUNT),)
    return found


@triton.jit
def _operands(ins, number, kind, task, column, lane, size, of_theta, of_rest, of_rate):
    """Tiles of theta, g, the state and alpha, so many lanes of each row."""
    rate: tl.constexpr = len(ins) - 1
    x = ()
    for k in tl.static_range(rate):
        start = task * tl.where((kind & (SHARED << k)) != 0, 0, size) + column
        limit = of_rest if k else of_theta
        x += (tl.load(ins[k] + start + lane, lane < limit, 0.0).to(number.dtype),)
    shared = (kind & (SHARED << rate)) != 0
    x += (rate_tile(ins[rate], number, kind, shared, task, column, lane, of_rate, size),)
    return x


@triton.jit
def _forward_tile(
    formula, ins, outs, c, number, kind, task, column, size, total, COLUMNS: tl.constexpr, MASKED: tl.constexpr
):
    if not MASKED:
        size = size // 16 * 16  # so it is, and loads are wide where that is known
    lane = tl.arange(0, COLUMNS)[None, :]
    at = task * size + column  # [TASKS, 1], where the tile's rows begin
    limit = tile_limit(at, column, size, total, COLUMNS, MASKED)
    y = formula(_operands(ins, number, kind, task, column, lane, size, limit, limit, limit), c)
    for k in tl.static_range(len(outs)):
        tl.store(outs[k] + at + lane, y[k].to(outs[k].dtype.element_ty), lane < limit)


@triton.jit
def step_forward(
    formula, ins, outs, constants, numbers, table, dtype: tl.constexpr, COUNT: tl.constexpr, CONSTANTS: tl.constexpr,
    TASKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """formula(theta, g, state, alpha, constants) -> theta', state"""
    index, part, size, total, kind = own_tensor(table[0], table[1], table[2], table[3], COUNT)
    ins, outs = _own_of_each(ins, index), _own_of_each(outs, index)
    c = _constants(constants, dtype, CONSTANTS)
    number = own_number(numbers, index, dtype, COUNT)
    corner, column = own_tile(part, size, TASKS, COLUMNS)
    task = corner + tl.arange(0, TASKS)[:, None]
    inside = (column + COLUMNS <= size) & (size % 16 == 0)
    if inside & ((corner + TASKS) * size <= total):
        _forward_tile(formula, ins, outs, c, number, kind, task, column, size, total, COLUMNS, False)
    else:
        _forward_tile(formula, ins, outs, c, number, kind, task, column, size, total, COLUMNS, True)


@triton.jit
def _backward_tiles(
    formula, ins, douts, dins, c, number, kind, bounds, LINEAR: tl.constexpr, TASKS: tl.constexpr,
    COLUMNS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Stores the gradients that are each task's own; returns the sums over tiles of all but that of g."""
    corner, last, column, size, total = bounds
    rate: tl.constexpr = len(ins) - 1
    sums = ()
    for _ in tl.static_range(len(ins)):
        sums += (tl.zeros((TASKS, COLUMNS), number.dtype),)
    if not MASKED:
        size = size // 16 * 16
    lane = tl.arange(0, COLUMNS)[None, :]
    for start in range(corner, last, TASKS):
        task = start + tl.arange(0, TASKS)[:, None]
        at = task * size + column
        limit = tile_limit(at, column, size, total, COLUMNS, MASKED)
        read = limit
        if LINEAR:
            read = tl.where((kind & (WANTED << rate)) != 0, limit, 0)
        x = _operands(ins, number, kind, task, column, lane, size, tl.where(c[0] != 0, read, 0), read, limit)
        dy = ()
        for k in tl.static_range(len(douts)):
            dy += (tl.load(douts[k] + at + lane, lane < limit, 0.0).to(number.dtype),)
        dx = formula(x, dy, c)
        new = ()
        for k in tl.static_range(len(ins)):
            if k or len(ins) > 3:  # without a state, dtheta is the cotangent itself
                mine = (kind & ((WANTED | SHARED) << k)) == (WANTED << k)
                if k == rate:
                    mine = mine & ((kind & ELEMENT) != 0)
                tl.store(dins[k] + at + lane, dx[k].to(dins[k].dtype.element_ty), lane < tl.where(mine, limit, 0))
            if k == 1:
                new += (sums[k],)
            else:
                new += (sums[k] + tl.where(lane < limit, dx[k], 0.0),)
        sums = new
    return sums


@triton.jit
def step_backward(
    formula, ins, douts, dins, partials, constants, numbers, table, width, dtype: tl.constexpr, LINEAR: tl.constexpr,
    COUNT: tl.constexpr, CONSTANTS: tl.constexpr, TASKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """formula(theta, g, state, alpha, cotangents of theta' and state, constants) -> gradients to theta, g, state, alpha; LINEAR: theta, g
    and the state are read by that to alpha alone. Theta always is by weight decay alone."""
    index, part, size, total, kind = own_tensor(table[0], table[1], table[2], table[3], COUNT)
    ins, douts, dins = _own_of_each(ins, index), _own_of_each(douts, index), _own_of_each(dins, index)
    c = _constants(constants, dtype, CONSTANTS)
    number = own_number(numbers, index, dtype, COUNT)
    corner, column = own_tile(part, size, TASKS, COLUMNS)
    last = tl.where((kind & WALK) != 0, tl.cdiv(total, size), corner + TASKS)
    bounds = corner, last, column, size, total
    inside = (column + COLUMNS <= size) & (size % 16 == 0)
    if inside & (tl.cdiv(last, TASKS) * TASKS * size <= total):
        sums = _backward_tiles(formula, ins, douts, dins, c, number, kind, bounds, LINEAR, TASKS, COLUMNS, False)
    else:
        sums = _backward_tiles(formula, ins, douts, dins, c, number, kind, bounds, LINEAR, TASKS, COLUMNS, True)
    lane = column + tl.arange(0, COLUMNS)
    for k in tl.static_range(len(ins)):
        if k != 1:  # noqa: SIM102
            if (kind & ((WANTED | SHARED) << k)) == ((WANTED | SHARED) << k):
                tl.store(dins[k] + lane, tl.sum(sums[k], 0).to(dins[k].dtype.element_ty), lane < size)
    rate: tl.constexpr = len(ins) - 1
    if partials is not None:  # noqa: SIM102
        if (kind & (ELEMENT | (WANTED << rate))) == (WANTED << rate):
            tl.store(partials + index.to(tl.int64) * width + part, tl.sum(tl.sum(sums[rate], 1), 0))

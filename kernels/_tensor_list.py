"""A list of tensors in one launch, for the steps of optimisers: how the list is cut into programs, and what its kernels are told.

A program owns a tile [TASKS, COLUMNS] of one tensor, which it finds by comparing its index with where each tensor's
programs end. Pointers and numbers are kernel arguments: nothing is copied to the device for a call. A tensor in which
tasks share nothing counts as one row of elements, cut at COLUMNS.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmeta._replay import recording

from ._launch import power_of_two, triton_dtype

TILE = 1024  # elements of a program, half as many in float64: two loads of 16 bytes a thread
# Bits of a tensor's `kind`: alpha is a number, or per element; a program walks all tasks. Of its operands theta, g, state, alpha, shifted
# by an operand's place: the tasks share it; its gradient is asked for.
NUMBER, ELEMENT, WALK, SHARED, WANTED = (tl.constexpr(bit) for bit in (1, 2, 4, 8, 256))


@triton.jit
def unpack(packed):
    """Integers in tuples come as 16 x + 2: kernels are compiled anew for a 1 and for multiples of 16."""
    return packed >> 4


@triton.jit
def own_tensor(ends, sizes, totals, kinds, COUNT: tl.constexpr):
    """This program's tensor, which of the tensor's programs it is, and the tensor's size, total and kind."""
    program = tl.program_id(0)
    index, first = program * 0, program * 0
    size, total, kind = sizes[0], totals[0], kinds[0]
    for i in tl.static_range(1, COUNT):
        here = program >= unpack(ends[i - 1])
        index = tl.where(here, i, index)
        first = tl.where(here, unpack(ends[i - 1]), first)
        size = tl.where(here, sizes[i], size)
        total = tl.where(here, totals[i], total)
        kind = tl.where(here, kinds[i], kind)
    return index, program - first, unpack(size).to(tl.int64), unpack(total), unpack(kind)


@triton.jit
def own(pointers, index):
    """pointers[index]"""
    found = pointers[0]
    for i in tl.static_range(1, len(pointers)):
        found = tl.where(index == i, pointers[i], found)
    return found


@triton.jit
def own_number(numbers, index, dtype: tl.constexpr, COUNT: tl.constexpr):
    """The number alpha; floats are passed with 24 bits, so a float64 comes in three parts."""
    number = tl.full((), 0, dtype)
    for i in tl.static_range(COUNT):
        number = tl.where(index == i, number_at(numbers, i, dtype, COUNT), number)
    return number


@triton.jit
def number_at(numbers, i: tl.constexpr, dtype: tl.constexpr, COUNT: tl.constexpr):
    value = tl.full((), numbers[i], dtype)
    if dtype == tl.float64:
        value += tl.full((), numbers[COUNT + i], dtype) + tl.full((), numbers[2 * COUNT + i], dtype)
    return value


@triton.jit
def own_tile(part, size, TASKS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where the tile of a tensor's program begins."""
    blocks = tl.cdiv(size, COLUMNS)
    return part // blocks * TASKS, part % blocks * COLUMNS


@triton.jit
def tile_limit(at, column, size, total, COLUMNS: tl.constexpr, MASKED: tl.constexpr):
    """How many lanes of each row lie in the tensor. A tile that is not MASKED lies inside."""
    if MASKED:
        return tl.minimum(tl.maximum(tl.minimum(size - column, total - at), 0), COLUMNS).to(tl.int32)
    else:
        return tl.full((), COLUMNS, tl.int32)


@triton.jit
def rate_tile(rate, number, kind, shared, task, column, lane, limit, size):
    """alpha for a tile [TASKS, COLUMNS]."""
    scalar = tl.load(rate, (kind & (NUMBER | ELEMENT)) == 0, 0.0).to(number.dtype)
    scalar = tl.where((kind & NUMBER) != 0, number, scalar)
    at = task * tl.where(shared, 0, size) + column
    element = (kind & ELEMENT) != 0
    tile = tl.load(rate + at + lane, lane < tl.where(element, limit, 0), 0.0).to(number.dtype)
    return tl.where(element, tile, scalar)


class Plan(NamedTuple):
    """How a group of tensors is cut: `table` goes to the kernel, `programs` has each tensor's number."""

    table: tuple[tuple[int, ...], ...]  # ends, sizes, totals, kinds
    programs: list[int]
    options: dict[str, Any]


def kind_of(operands: Sequence[Any], needs: Sequence[bool] = ()) -> int:
    """Of one tensor's theta, g, state, alpha."""
    grad, rate = operands[1], operands[-1]
    element = isinstance(rate, Tensor) and rate.ndim > 0
    kind: int = ELEMENT.value * element + NUMBER.value * (not isinstance(rate, Tensor))
    many = grad.ndim > 0 and grad.shape[0] != 1
    for k, x in enumerate(operands):
        shared = many and (x is not rate or element) and x.ndim < grad.ndim
        wanted = bool(needs) and needs[k]
        kind |= SHARED.value * shared << k | WANTED.value * wanted << k | WALK.value * (shared and wanted)
    return kind


def make_plan(grads: Sequence[Tensor], kinds: list[int]) -> Plan:
    by_task = [k % WANTED.value >= SHARED.value for k in kinds]
    totals = [g.numel() for g in grads]
    tasks = power_of_two(max((g.shape[0] for g, b in zip(grads, by_task, strict=True) if b), default=1), 1, 4)
    columns = TILE // tasks // (2 if grads[0].dtype == torch.float64 else 1)
    sizes = [t // max(g.shape[0], 1) if b else columns for g, t, b in zip(grads, totals, by_task, strict=True)]
    programs = []
    for kind, size, total in zip(kinds, sizes, totals, strict=True):
        rows = triton.cdiv(total, max(size, 1))
        programs.append(triton.cdiv(size, columns) * (min(rows, 1) if kind & WALK.value else triton.cdiv(rows, tasks)))
    table = tuple(tuple(16 * x + 2 for x in row) for row in (accumulate(programs), sizes, totals, kinds))
    options = {
        "dtype": triton_dtype(grads[0]),
        "COUNT": len(grads),
        "TASKS": tasks,
        "COLUMNS": columns,
        "num_warps": 4,
    }
    return Plan(table, programs, options)


def split_numbers(rates: Sequence[Any], dtype: torch.dtype) -> tuple[float, ...]:
    """What of the rates is a number, each as the float32 nearest to it; for float64 also what that leaves, twice."""
    parts, left = [], [0.0 if isinstance(r, Tensor) else r for r in rates]
    if dtype != torch.float64 and recording.recorder is not None:
        return tuple(left)  # a launch rounds them the same way
    for _ in range(3 if dtype == torch.float64 else 1):
        nearest = [ctypes.c_float(x).value for x in left]
        left = [x - y for x, y in zip(left, nearest, strict=True)]
        parts += nearest
    return tuple(parts)


def dense_or(tensors: Sequence[Any], instead: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Contiguous tensors; where there is none, one that the kernel will not touch."""
    return tuple(x.contiguous() if isinstance(x, Tensor) else y for x, y in zip(tensors, instead, strict=True))


def new_like(x: Tensor, grad: Tensor) -> Tensor:
    """A gradient to fill, of the shape of x; zeros where there is no task to sum over."""
    new = torch.empty if grad.numel() else torch.zeros
    return new(x.shape, dtype=grad.dtype, device=grad.device)

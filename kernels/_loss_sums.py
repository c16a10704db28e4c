"""The sum or the mean of a task's losses: by the last of the programs that found them, or by a launch of its own."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._distance import divide
from ._launch import launch, triton_dtype


@triton.jit
def add_up(
    losses, parts, counter, counts, loss, counted, task, q_block, q_blocks, dtype: tl.constexpr, MEAN: tl.constexpr
):
    """The task's loss from the sums and counts that its programs left in parts [T, q_blocks, 2], by the last of them."""
    parts += task * q_blocks * 2
    tl.store(parts + q_block * 2, loss)
    tl.store(parts + q_block * 2 + 1, counted)
    tl.debug_barrier()  # all threads' stores come before the count
    if tl.atomic_add(counter + task, 1, sem="acq_rel") == q_blocks - 1:
        total, count = tl.zeros((256,), dtype), tl.zeros((256,), dtype)
        for start in range(0, q_blocks, 256):
            b = start + tl.arange(0, 256)
            total += tl.load(parts + b * 2, b < q_blocks, 0.0)
            count += tl.load(parts + b * 2 + 1, b < q_blocks, 0.0)
        out = tl.sum(total, 0)
        if MEAN:
            number = tl.maximum(tl.sum(count, 0), 1.0)
            out = divide(out, number)
            tl.store(counts + task, number)
        tl.store(losses + task, out.to(losses.dtype.element_ty))


@triton.jit(do_not_specialize=("Q", "ignore_index"))
def _reduce_kernel(each, targets, losses, counts, Q, ignore_index, dtype: tl.constexpr):
    total, count, task = tl.zeros((1024,), dtype), tl.zeros((1024,), dtype), tl.program_id(0).to(tl.int64)
    for start in range(0, Q, 1024):
        q = start + tl.arange(0, 1024)
        total += tl.load(each + task * Q + q, q < Q, 0.0)
        counted = q < Q
        if targets is not None:
            counted &= tl.load(targets + task * Q + q, counted, ignore_index) != ignore_index
        count += counted.to(dtype)
    out = tl.sum(total, 0)
    if counts is not None:
        number = tl.maximum(tl.sum(count, 0), 1.0)
        out = divide(out, number)
        tl.store(counts + task, number)
    tl.store(losses + task, out.to(losses.dtype.element_ty))


def reduce(
    each: Tensor, targets: Tensor | None, losses: Tensor, counts: Tensor | None, queries: int, ignore_index: int
) -> None:
    """The sum, or with `counts` the mean, of each task's losses, of so many queries; without `targets` all count."""
    launch(
        _reduce_kernel,
        losses.numel(),
        each,
        each=each,
        targets=targets,
        losses=losses,
        counts=counts,
        Q=queries,
        ignore_index=ignore_index,
        dtype=triton_dtype(each),
        num_warps=4,
    )

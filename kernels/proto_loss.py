"""loss_q = -log p(y_q | x_q) with p as in proto_log_softmax, without the [Q, N] matrix.

Forward, one launch: a program owns BLOCK_Q queries of a task and walks the prototypes; distances and the online log-sum-exp
stay in registers. Moved: query once, prototypes once a program (from cache), a few numbers a query. For "sum" and "mean" each
program leaves the sum and the count of its queries, and the last of a task, told by a counter, adds them up in their order; the
counters are zeroed before, a launch of its own.
Many ways: a launch for each chunk of products, see _products.py; another adds up the losses of a task.
Backward: see _distance_bwd.py; distances are computed anew.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._distance import (
    INFINITY,
    accurate_log,
    block_of_rows,
    distance_block,
    divide,
    load_rate,
    online_log_sum_exp,
    scale_of,
)
from ._distance_bwd import distance_gradients
from ._launch import accumulator, counters, launch, task_rows, triton_dtype
from ._products import forward_parts
from ._tiles import forward_sides, kept_arguments, kept_tensors, temperature_arguments, tile_options


@triton.jit(
    do_not_specialize=(
        "first_task",
        "first_row",
        "rows",
        "query_stride",
        "prototypes_stride",
        "scale_stride",
        "Q",
        "N",
        "ignore_index",
    )
)
def _proto_loss_fwd_kernel(
    query,
    prototypes,
    targets,
    temperature_tensor,
    temperature_value: tl.float64,
    losses,
    parts,
    counter,
    counts,
    nearest,
    log_sum,
    query_scale,
    prototype_scale,
    products,
    x_square,
    y_square,
    query_stride,
    prototypes_stride,
    scale_stride,
    Q,
    N,
    D,
    first_task,
    first_row,
    rows,
    WIDTH,
    ignore_index,
    dtype: tl.constexpr,
    METRIC: tl.constexpr,
    NEAR: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    task, q, place = block_of_rows(tl.program_id(0), rows, first_task, first_row, BLOCK_Q)
    q_blocks = tl.cdiv(rows, BLOCK_Q)
    q_block = tl.program_id(0) % q_blocks
    query += task * query_stride * D
    prototypes += task * prototypes_stride * D
    row = task * Q + q  # [BLOCK_Q]
    if products is not None:
        x_square, y_square = x_square + task * Q, y_square + task * WIDTH
    given = products, place * WIDTH, x_square, y_square, WIDTH, NEAR
    last = first_row + rows
    rate = load_rate(temperature_tensor, temperature_value, dtype)
    target = tl.load(targets + row, q < last, ignore_index)
    x_scale = scale_of(query, query_scale, task * Q, q, last, D, products, dtype, METRIC, BLOCK_Q, BLOCK_D)
    least = tl.full((BLOCK_Q,), INFINITY, dtype)
    total = tl.zeros((BLOCK_Q,), dtype)
    picked = tl.zeros((BLOCK_Q,), dtype)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N).to(tl.int64)
        c_scale = scale_of(
            prototypes, prototype_scale, task * scale_stride, n, N, D, products, dtype, METRIC, BLOCK_N, BLOCK_D
        )
        distance, _ = distance_block(
            query, prototypes, q, n, last, N, D, x_scale, c_scale, given, dtype, METRIC, BLOCK_Q, BLOCK_N, BLOCK_D
        )
        distance = tl.where(n[None, :] < N, distance, INFINITY)
        least, total = online_log_sum_exp(least, total, distance, rate)
        picked += tl.sum(tl.where(n[None, :] == target[:, None], distance, 0.0), 1)
        if prototype_scale is not None and products is None:
            tl.store(prototype_scale + task * scale_stride + n, c_scale, n < tl.where(q_block == 0, N, 0))
    log_total = accurate_log(total)
    if nearest is not None:
        tl.store(nearest + row, least, q < last)
        tl.store(log_sum + row, log_total, q < last)
    if query_scale is not None and products is None:
        tl.store(query_scale + row, x_scale, q < last)
    loss = (picked - least) * rate + log_total
    loss = tl.where((target >= 0) & (target < N), loss, float("nan"))
    loss = tl.where(target == ignore_index, 0.0, loss)
    if parts is None:
        tl.store(losses + row, loss.to(losses.dtype.element_ty), q < last)
    else:
        counted = tl.sum(tl.where(target != ignore_index, 1.0, 0.0).to(dtype), 0)
        _add_up(losses, parts, counter, counts, tl.sum(loss, 0), counted, task, q_block, q_blocks, dtype, MEAN)


@triton.jit
def _add_up(
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
        counted = (q < Q) & (tl.load(targets + task * Q + q, q < Q, ignore_index) != ignore_index)
        count += counted.to(dtype)
    out = tl.sum(total, 0)
    if counts is not None:
        number = tl.maximum(tl.sum(count, 0), 1.0)
        out = divide(out, number)
        tl.store(counts + task, number)
    tl.store(losses + task, out.to(losses.dtype.element_ty))


def proto_loss_fwd(
    query: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    metric: str,
    ignore_index: int,
    reduction: str,
    needs: tuple[bool, ...],
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    q, c, by_products = forward_sides(query, prototypes)
    (tasks, queries, features), ways = q.shape, c.shape[1]
    options = tile_options(q, ways)
    blocks = triton.cdiv(queries, options["BLOCK_Q"])
    kept = kept_tensors(q, c, metric) if any(needs) or by_products else (None,) * 4
    made, chunks = forward_parts(q, c, metric, kept[2:], by_products)
    targets = targets.contiguous()
    losses = query.new_empty(targets.shape if reduction == "none" else targets.shape[:-1])
    each, parts, counts = losses, None, None
    if reduction != "none":
        counts = losses.new_empty(losses.numel(), dtype=accumulator(query)) if reduction == "mean" else None
        if by_products:  # a task may be several chunks, or a part of one
            each = q.new_empty(tasks, queries, dtype=accumulator(query))
        else:
            parts = q.new_empty(tasks, blocks, 2, dtype=accumulator(query))
        if queries == 0:  # a sum of nothing
            losses.zero_()
    for part, given in chunks:
        launch(
            _proto_loss_fwd_kernel,
            part.tasks * triton.cdiv(part.rows, options["BLOCK_Q"]),
            query,
            query=q,
            prototypes=c,
            targets=targets,
            **temperature_arguments(temperature),
            losses=each,
            parts=parts,
            counter=None if parts is None else counters(query, tasks),
            counts=None if parts is None else counts,
            **kept_arguments(kept),
            query_stride=task_rows(q),
            prototypes_stride=task_rows(c),
            scale_stride=ways if len(c) > 1 else 0,
            Q=queries,
            N=ways,
            D=features,
            ignore_index=ignore_index,
            dtype=triton_dtype(query),
            METRIC=metric,
            MEAN=reduction == "mean",
            **given,
            **options,
        )
    if each is not losses:
        _reduce(each, targets, losses, counts, ignore_index)
    return (losses,), (*kept, *made, counts) if any(needs) else ()


def _reduce(each: Tensor, targets: Tensor, losses: Tensor, counts: Tensor | None, ignore_index: int) -> None:
    """The sum, or with `counts` the mean, of each task's losses."""
    launch(
        _reduce_kernel,
        losses.numel(),
        each,
        each=each,
        targets=targets,
        losses=losses,
        counts=counts,
        Q=targets.shape[-1],
        ignore_index=ignore_index,
        dtype=triton_dtype(each),
        num_warps=4,
    )


def proto_loss_bwd(
    cotangents: tuple[Tensor, ...],
    saved: tuple[Tensor, ...],
    query: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    metric: str,
    ignore_index: int,
    reduction: str,
    needs: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    static = metric, ignore_index, reduction
    *kept, counts = saved or proto_loss_fwd(query, prototypes, targets, temperature, *static, needs)[1]
    return distance_gradients(
        query,
        prototypes,
        temperature,
        metric,
        kept,
        (needs[0], needs[1], needs[3]),
        dloss=cotangents[0].contiguous(),
        counts=counts,
        targets=targets.contiguous(),
        group=1 if reduction == "none" else targets.shape[-1],
        ignore_index=ignore_index,
    )

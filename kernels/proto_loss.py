"""loss_q = -log p(y_q | x_q) with p as in proto_log_softmax, without the [Q, N] matrix.

Forward, one launch: a program owns BLOCK_Q queries of a task and walks the prototypes; distances and the online log-sum-exp
stay in registers. Moved: query once, prototypes once a program (from cache), a few numbers a query. For "sum" and "mean" each
program leaves the sum and the count of its queries, and the last of a task, told by a counter, adds them up in their order; the
counters are zeroed before, a launch of its own.
Many ways: a launch for each chunk of products, see _products.py; another adds up the losses of a task.
Backward: see _distance_bwd.py; distances are computed anew.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ._distance import (
    INFINITY,
    accurate_log,
    block_of_rows,
    distance_block,
    load_rate,
    scale_of,
)
from ._distance_bwd import distance_gradients
from ._launch import accumulator, counters, launch, task_rows, triton_dtype
from ._loss_sums import add_up, reduce
from ._products import forward_parts
from ._replaced import online_with_margin, replaced, target_gradients
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
    exclude,
    target_distance,
    temperature_tensor,
    temperature_value: tl.float64,
    losses,
    hits,
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
    MARGIN: tl.constexpr,
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
    counted = target
    closest, first = tl.full((BLOCK_Q,), INFINITY, dtype), tl.full((BLOCK_Q,), -1, tl.int64)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N).to(tl.int64)
        c_scale = scale_of(
            prototypes, prototype_scale, task * scale_stride, n, N, D, products, dtype, METRIC, BLOCK_N, BLOCK_D
        )
        distance, _ = distance_block(
            query, prototypes, q, n, last, N, D, x_scale, c_scale, given, dtype, METRIC, BLOCK_Q, BLOCK_N, BLOCK_D
        )
        distance, counted = replaced(distance, n, row, q < last, target, (exclude, target_distance), ignore_index)
        distance = tl.where(n[None, :] < N, distance, INFINITY)
        at_target = n[None, :] == counted[:, None]
        if hits is not None:
            here = tl.min(distance, 1)
            place_here = tl.min(tl.where(distance == here[:, None], n[None, :], N), 1)
            first = tl.where(here < closest, place_here, first)
            closest = tl.minimum(closest, here)
        least, total = online_with_margin(least, total, distance, rate, at_target, MARGIN)
        picked += tl.sum(tl.where(at_target, distance, 0.0), 1)
        if prototype_scale is not None and products is None:
            tl.store(prototype_scale + task * scale_stride + n, c_scale, n < tl.where(q_block == 0, N, 0))
    log_total = accurate_log(total)
    if nearest is not None:
        tl.store(nearest + row, least, q < last)
        tl.store(log_sum + row, log_total, q < last)
    if query_scale is not None and products is None:
        tl.store(query_scale + row, x_scale, q < last)
    loss = (picked - least) * rate + tl.full((1,), MARGIN, dtype) + log_total
    loss = tl.where((counted >= 0) & (counted < N), loss, float("nan"))
    loss = tl.where(target == ignore_index, 0.0, loss)
    if hits is not None:
        hit = (first == target) & (target != ignore_index) & (loss == loss)
        tl.store(hits + row, hit.to(hits.dtype.element_ty), q < last)
    if parts is None:
        tl.store(losses + row, loss.to(losses.dtype.element_ty), q < last)
    else:
        counted = tl.sum(tl.where(target != ignore_index, 1.0, 0.0).to(dtype), 0)
        add_up(losses, parts, counter, counts, tl.sum(loss, 0), counted, task, q_block, q_blocks, dtype, MEAN)


def proto_loss_limit(*args: Any) -> str | None:
    """What the kernels leave to the reference."""
    targets, bias, classes, smoothing = args[2], args[6], args[7], args[-2]
    if targets.is_floating_point():
        return "takes no targets of floating point"
    is_plain = bias is None and classes is None and not smoothing
    return None if is_plain else "takes no bias, classes and label_smoothing"


def proto_loss_fwd(
    query: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    exclude: Tensor | None,
    target_distance: Tensor | None,
    bias: Tensor | None,
    classes: Tensor | None,
    metric: str,
    ignore_index: int,
    reduction: str,
    margin: float,
    smoothing: float,
    counts_hits: bool,
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
    hits = losses.new_empty(targets.shape, dtype=accumulator(query)) if counts_hits else None
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
            exclude=_dense(exclude),
            target_distance=_dense(target_distance),
            **temperature_arguments(temperature),
            losses=each,
            hits=hits,
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
            MARGIN=margin,
            MEAN=reduction == "mean",
            **given,
            **options,
        )
    if each is not losses:
        reduce(each, targets, losses, counts, ignore_index)
    outputs = (losses,) if hits is None else (losses, _reduced(hits, targets, reduction, ignore_index).to(losses.dtype))
    return outputs, (*kept, *made, counts) if any(needs) else ()


def _reduced(hits: Tensor, targets: Tensor, reduction: str, ignore_index: int) -> Tensor:
    if reduction == "none":
        return hits
    total = hits.sum(-1)
    return total if reduction == "sum" else total / (targets != ignore_index).sum(-1).clamp(min=1)


def proto_loss_bwd(
    cotangents: tuple[Tensor, ...],
    saved: tuple[Tensor, ...],
    query: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    exclude: Tensor | None,
    target_distance: Tensor | None,
    bias: Tensor | None,
    classes: Tensor | None,
    metric: str,
    ignore_index: int,
    reduction: str,
    margin: float,
    smoothing: float,
    counts_hits: bool,
    needs: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    static = metric, ignore_index, reduction, margin, smoothing, counts_hits
    exclude, target_distance, targets = _dense(exclude), _dense(target_distance), targets.contiguous()
    inputs = query, prototypes, targets, temperature, exclude, target_distance, bias, classes
    *kept, counts = saved or proto_loss_fwd(*inputs, *static, needs)[1]
    dloss = cotangents[0].contiguous()
    grads = distance_gradients(
        query,
        prototypes,
        temperature,
        metric,
        kept,
        (needs[0], needs[1], needs[3]),
        dloss=dloss,
        counts=counts,
        targets=targets,
        exclude=exclude,
        target_distance=target_distance,
        margin=margin,
        group=1 if reduction == "none" else targets.shape[-1],
        ignore_index=ignore_index,
    )
    if target_distance is None or not (needs[3] or needs[5]):
        return grads
    of_target, of_temperature = target_gradients(
        target_distance, targets, exclude, temperature, kept, dloss, counts, prototypes.shape[-2], ignore_index, margin
    )
    if needs[3]:
        grads = *grads[:-1], grads[-1] + of_temperature.to(grads[-1].dtype)
    return (*grads, of_target) if needs[5] else grads


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()

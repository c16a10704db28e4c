"""loss_q = -log p(y_q | x_q) with p as in proto_log_softmax, without the [Q, N] matrix.

Forward: a program owns BLOCK_Q queries of a task and walks the prototypes; differences, logits and the online
log-sum-exp stay in registers. Moved: query once, prototypes once a program (from cache), a few numbers a query. "sum"
and "mean" add a launch with one program a task.
Backward: distances are computed anew; with the log-sum-exp they give the coefficients of the differences, [rows, N] for
as many queries at a time as keep this scratch within the size of query (or 4 MiB). A second launch gives the gradients.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._distance import (
    INFINITY,
    accurate_log,
    distance_block,
    distance_coefficient,
    distance_gradients,
    divide,
    load_rate,
    merge_tasks,
    metric_limit,
    online_log_sum_exp,
    temperature_arguments,
    tile_options,
)
from ._launch import accumulator, launch, triton_dtype

SCRATCH = 1 << 20  # coefficients that backward may hold at a time, where query has fewer elements


@triton.jit
def _proto_loss_fwd_kernel(
    query,
    prototypes,
    targets,
    temperature_tensor,
    temperature_value: tl.float64,
    losses,
    nearest,
    log_sum,
    query_stride,
    prototypes_stride,
    Q,
    N,
    D,
    ignore_index,
    dtype: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    q_blocks = tl.cdiv(Q, BLOCK_Q)
    task = (tl.program_id(0) // q_blocks).to(tl.int64)
    q = ((tl.program_id(0) % q_blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)).to(tl.int64)
    query += task * query_stride
    prototypes += task * prototypes_stride
    row = task * Q + q  # [BLOCK_Q]
    rate = load_rate(temperature_tensor, temperature_value, dtype)
    target = tl.load(targets + row, q < Q, 0)
    least = tl.full((BLOCK_Q,), INFINITY, dtype)
    total = tl.zeros((BLOCK_Q,), dtype)
    picked = tl.zeros((BLOCK_Q,), dtype)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        distance = distance_block(query, prototypes, q, n, Q, N, D, dtype, SQUARED, BLOCK_Q, BLOCK_N, BLOCK_D)
        distance = tl.where(n[None, :] < N, distance, INFINITY)
        least, total = online_log_sum_exp(least, total, distance, rate)
        picked += tl.sum(tl.where(n[None, :] == target[:, None], distance, 0.0), 1)
    log_total = accurate_log(total)
    loss = (picked - least) * rate + log_total
    loss = tl.where((target >= 0) & (target < N), loss, float("nan"))
    loss = tl.where(target == ignore_index, 0.0, loss)
    tl.store(losses + row, loss.to(losses.dtype.element_ty), q < Q)
    if nearest is not None:
        tl.store(nearest + row, least, q < Q)
        tl.store(log_sum + row, log_total, q < Q)


@triton.jit
def _reduce_kernel(losses, targets, out, counts, Q, ignore_index, BLOCK_Q: tl.constexpr):
    """A task's total of losses [T, Q]; with `counts`, over the number of its targets that are not ignored."""
    task = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK_Q,), losses.dtype.element_ty)
    count = tl.zeros((BLOCK_Q,), losses.dtype.element_ty)
    for start in tl.range(0, Q, BLOCK_Q, num_stages=3):
        q = start + tl.arange(0, BLOCK_Q)
        total += tl.load(losses + task * Q + q, q < Q, 0.0)
        if counts is not None:
            target = tl.load(targets + task * Q + q, q < Q, ignore_index)
            count += tl.where(target != ignore_index, 1.0, 0.0)
    loss = tl.sum(total, 0)
    if counts is not None:
        counted = tl.maximum(tl.sum(count, 0), 1.0)
        loss = divide(loss, counted)
        tl.store(counts + task, counted)
    tl.store(out + task, loss.to(out.dtype.element_ty))


def proto_loss_limit(query: Any, prototypes: Any, targets: Any, temperature: Any, metric: str, *_: Any) -> str | None:
    return metric_limit(metric)


def proto_loss_fwd(
    query: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    metric: str,
    ignore_index: int,
    reduction: str,
    needs: tuple[bool, ...],
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    q, c = merge_tasks(query, prototypes)
    (tasks, queries, features), ways = q.shape, c.shape[1]
    targets = targets.contiguous()
    dtype = accumulator(query)
    losses = query.new_empty(targets.shape, dtype=query.dtype if reduction == "none" else dtype)
    kept: tuple[Any, ...] = tuple(query.new_empty(2, tasks, queries, dtype=dtype)) if any(needs) else (None, None)
    options = tile_options(q, c)
    launch(
        _proto_loss_fwd_kernel,
        tasks * triton.cdiv(queries, options["BLOCK_Q"]),
        query,
        q,
        c,
        targets,
        *temperature_arguments(temperature),
        losses,
        *kept,
        q.stride(0),
        c.stride(0),
        queries,
        ways,
        features,
        ignore_index,
        dtype=triton_dtype(query),
        SQUARED=metric == "sqeuclidean",
        **options,
    )
    saved = kept if any(needs) else ()
    if reduction == "none":
        return (losses,), saved
    out = query.new_empty(targets.shape[:-1])
    counts = query.new_empty(targets.shape[:-1], dtype=dtype) if reduction == "mean" else None
    launch(
        _reduce_kernel,
        out.numel(),
        query,
        losses,
        targets,
        out,
        counts,
        targets.shape[-1],
        ignore_index,
        BLOCK_Q=1024,
        num_warps=4,
    )
    return (out,), (*saved, counts) if saved and counts is not None else saved


@triton.jit
def _proto_loss_bwd_kernel(
    dloss,
    counts,
    query,
    prototypes,
    targets,
    temperature_tensor,
    temperature_value: tl.float64,
    nearest,
    log_sum,
    coefficients,
    dtemperature,
    query_stride,
    prototypes_stride,
    first,
    last,
    Q,
    N,
    D,
    group,
    ignore_index,
    dtype: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Coefficients [T, last - first, N] of the queries in that range; `group` queries share a cotangent."""
    q_blocks = tl.cdiv(last - first, BLOCK_Q)
    task = (tl.program_id(0) // q_blocks).to(tl.int64)
    q = first + ((tl.program_id(0) % q_blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)).to(tl.int64)
    query += task * query_stride
    prototypes += task * prototypes_stride
    row = task * Q + q  # [BLOCK_Q]
    rate = load_rate(temperature_tensor, temperature_value, dtype)
    target = tl.load(targets + row, q < last, ignore_index)
    least = tl.load(nearest + row, q < last, 0.0)
    log_total = tl.load(log_sum + row, q < last, 0.0)
    weight = tl.load(dloss + row // group, q < last, 0.0).to(dtype)
    if counts is not None:
        weight = divide(weight, tl.load(counts + row // group, q < last, 1.0))
    weight = tl.where((target != ignore_index) & (target >= 0) & (target < N), weight, 0.0)
    scaled = tl.zeros((BLOCK_Q,), dtype)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        distance = distance_block(query, prototypes, q, n, last, N, D, dtype, SQUARED, BLOCK_Q, BLOCK_N, BLOCK_D)
        farther = distance - least[:, None]  # serves dtemperature too: a row of dlogits sums to 0
        probs = tl.exp(-farther * rate - log_total[:, None])
        dlogits = weight[:, None] * (probs - tl.where(n[None, :] == target[:, None], 1.0, 0.0))
        inside = (q[:, None] < last) & (n[None, :] < N)
        scaled += tl.sum(tl.where(inside, dlogits * farther, 0.0), 1)
        at = (task * (last - first) + q[:, None] - first) * N + n[None, :]
        tl.store(coefficients + at, distance_coefficient(dlogits, distance, rate, SQUARED), inside)
    if dtemperature is not None:
        tl.store(dtemperature + row, scaled * rate * rate, q < last)


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
    saved = saved or proto_loss_fwd(query, prototypes, targets, temperature, *static, needs)[1]
    nearest, log_sum, counts = saved[0], saved[1], saved[2] if reduction == "mean" else None
    q, c = merge_tasks(query, prototypes)
    (tasks, queries, features), ways = q.shape, c.shape[1]
    targets, dloss = targets.contiguous(), cotangents[0].contiguous()
    dtemperature = torch.empty_like(nearest) if needs[3] else None
    options = tile_options(q, c)

    def coefficients(first: int, last: int) -> Tensor:
        w = nearest.new_empty(tasks, last - first, ways)
        launch(
            _proto_loss_bwd_kernel,
            tasks * triton.cdiv(last - first, options["BLOCK_Q"]),
            query,
            dloss,
            counts,
            q,
            c,
            targets,
            *temperature_arguments(temperature),
            nearest,
            log_sum,
            w,
            dtemperature,
            q.stride(0),
            c.stride(0),
            first,
            last,
            queries,
            ways,
            features,
            1 if reduction == "none" else targets.shape[-1],
            ignore_index,
            dtype=triton_dtype(query),
            SQUARED=metric == "sqeuclidean",
            **options,
        )
        return w

    rows = max(max(query.numel(), SCRATCH) // max(tasks * ways, 1), 1)
    grads = distance_gradients(query, prototypes, needs, coefficients, rows)
    if dtemperature is not None and isinstance(temperature, Tensor):
        grads.append(dtemperature.sum().to(temperature.dtype))
    return tuple(grads)

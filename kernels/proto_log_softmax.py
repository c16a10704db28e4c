"""log p(y = k | x) = log_softmax_k(-d(x, c_k) / temperature).

Forward, one launch: a program owns BLOCK_Q queries of a task; distances and the online log-sum-exp stay in registers. Up
to BLOCK_N ways go straight to the output; more are written as distances, and turned into log probabilities by the same
program while they are in cache. Moved: query and output once, prototypes once a program (from cache).
Many ways: a launch for each chunk of products, see _products.py.
Backward: see _distance_bwd.py; distances by differences are kept from forward, so none is computed twice.
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
    load_rate,
    load_scale,
    online_log_sum_exp,
    scale_of,
)
from ._distance_bwd import distance_gradients
from ._launch import accumulator, launch, task_rows, triton_dtype
from ._products import forward_parts
from ._tiles import forward_sides, kept_arguments, kept_tensors, temperature_arguments, tile_options


@triton.jit(
    do_not_specialize=("first_task", "first_row", "rows", "query_stride", "prototypes_stride", "scale_stride", "Q", "N")
)
def _proto_log_softmax_fwd_kernel(
    query,
    prototypes,
    temperature_tensor,
    temperature_value: tl.float64,
    log_probs,
    distances,
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
    dtype: tl.constexpr,
    METRIC: tl.constexpr,
    NEAR: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    task, q, place = block_of_rows(tl.program_id(0), rows, first_task, first_row, BLOCK_Q)
    q_block = tl.program_id(0) % tl.cdiv(rows, BLOCK_Q)
    query += task * query_stride * D
    prototypes += task * prototypes_stride * D
    row = task * Q + q  # [BLOCK_Q]
    if products is not None:
        x_square, y_square = x_square + task * Q, y_square + task * WIDTH
    given = products, place * WIDTH, x_square, y_square, WIDTH, NEAR
    last = first_row + rows
    rate = load_rate(temperature_tensor, temperature_value, dtype)
    x_scale = scale_of(query, query_scale, task * Q, q, last, D, products, dtype, METRIC, BLOCK_Q, BLOCK_D)
    least = tl.full((BLOCK_Q,), INFINITY, dtype)
    total = tl.zeros((BLOCK_Q,), dtype)
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
        inside = (q[:, None] < last) & (n[None, :] < N)
        if distances is not None:
            tl.store(distances + row[:, None] * N + n[None, :], distance, inside)
        if ONE_BLOCK:
            out = (least[:, None] - distance) * rate - accurate_log(total)[:, None]
            tl.store(log_probs + row[:, None] * N + n[None, :], out.to(log_probs.dtype.element_ty), inside)
        if prototype_scale is not None and products is None:
            tl.store(prototype_scale + task * scale_stride + n, c_scale, n < tl.where(q_block == 0, N, 0))
    if nearest is not None:
        tl.store(nearest + row, least, q < last)
        tl.store(log_sum + row, accurate_log(total), q < last)
    if query_scale is not None and products is None:
        tl.store(query_scale + row, x_scale, q < last)
    if not ONE_BLOCK:
        tl.debug_barrier()  # the distances are read back by other threads of this program
        for start in range(0, N, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N).to(tl.int64)
            inside = (q[:, None] < last) & (n[None, :] < N)
            if products is None:
                distance = tl.load(distances + row[:, None] * N + n[None, :], inside, 0.0)
            else:
                c_scale = load_scale(prototype_scale, task * scale_stride, n, N)
                distance, _ = distance_block(
                    query, prototypes, q, n, last, N, D, x_scale, c_scale,
                    given, dtype, METRIC, BLOCK_Q, BLOCK_N, BLOCK_D
                )  # fmt: skip
            out = (least[:, None] - distance) * rate - accurate_log(total)[:, None]
            tl.store(log_probs + row[:, None] * N + n[None, :], out.to(log_probs.dtype.element_ty), inside)


def proto_log_softmax_fwd(
    query: Tensor, prototypes: Tensor, temperature: float | Tensor, metric: str, needs: tuple[bool, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    log_probs = query.new_empty(*query.shape[:-1], prototypes.shape[-2])
    q, c, by_products = forward_sides(query, prototypes)
    (tasks, queries, features), ways = q.shape, c.shape[1]
    options = tile_options(q, ways)
    one_block = ways <= options["BLOCK_N"]
    kept = kept_tensors(q, c, metric) if any(needs) or by_products else (None,) * 4
    made, chunks = forward_parts(q, c, metric, kept[2:], by_products)
    keep, distances = any(needs) and not by_products, None
    if keep or not (one_block or by_products):
        in_output = not keep and log_probs.dtype == accumulator(query)
        distances = log_probs if in_output else q.new_empty(tasks, queries, ways, dtype=accumulator(query))
    for part, given in chunks:
        launch(
            _proto_log_softmax_fwd_kernel,
            part.tasks * triton.cdiv(part.rows, options["BLOCK_Q"]),
            query,
            query=q,
            prototypes=c,
            **temperature_arguments(temperature),
            log_probs=log_probs,
            distances=distances,
            **kept_arguments(kept),
            query_stride=task_rows(q),
            prototypes_stride=task_rows(c),
            scale_stride=ways if len(c) > 1 else 0,
            Q=queries,
            N=ways,
            D=features,
            dtype=triton_dtype(query),
            METRIC=metric,
            ONE_BLOCK=one_block,
            **given,
            **options,
        )
    return (log_probs,), (*kept, *made, distances if keep else None) if any(needs) else ()


def proto_log_softmax_bwd(
    cotangents: tuple[Tensor, ...],
    saved: tuple[Tensor, ...],
    query: Tensor,
    prototypes: Tensor,
    temperature: float | Tensor,
    metric: str,
    needs: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    *kept, distances = saved or proto_log_softmax_fwd(query, prototypes, temperature, metric, needs)[1]
    dlog_probs = cotangents[0].contiguous()
    return distance_gradients(
        query, prototypes, temperature, metric, kept, needs, distances=distances, dlog_probs=dlog_probs
    )

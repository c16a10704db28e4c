"""log p(y = k | x) = log_softmax_k(-d(x, c_k) / temperature).

Forward, one launch: a program owns BLOCK_Q queries of a task; distances and the online log-sum-exp stay in registers. Up
to BLOCK_N ways go straight to the output; more are written as distances, and turned into log probabilities by the same
program while they are in cache. Moved: query and output once, prototypes once a program (from cache).
Backward: see _distance_bwd.py; distances by differences are kept from forward, so none is computed twice.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._distance import INFINITY, accurate_log, distance_block, load_rate, online_log_sum_exp, row_scale
from ._distance_bwd import distance_gradients
from ._launch import accumulator, dense, launch, task_rows, triton_dtype
from ._tiles import kept_arguments, kept_tensors, temperature_arguments, tile_options


@triton.jit(do_not_specialize=("query_stride", "prototypes_stride", "scale_stride", "Q", "N"))
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
    query_stride,
    prototypes_stride,
    scale_stride,
    Q,
    N,
    D,
    dtype: tl.constexpr,
    METRIC: tl.constexpr,
    PRECISION: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    q_blocks = tl.cdiv(Q, BLOCK_Q)
    task = (tl.program_id(0) // q_blocks).to(tl.int64)
    q_block = tl.program_id(0) % q_blocks
    q = (q_block * BLOCK_Q + tl.arange(0, BLOCK_Q)).to(tl.int64)
    query += task * query_stride * D
    prototypes += task * prototypes_stride * D
    row = task * Q + q  # [BLOCK_Q]
    rate = load_rate(temperature_tensor, temperature_value, dtype)
    x_scale = row_scale(query, q, Q, D, dtype, METRIC, BLOCK_Q, BLOCK_D)
    least = tl.full((BLOCK_Q,), INFINITY, dtype)
    total = tl.zeros((BLOCK_Q,), dtype)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N).to(tl.int64)
        c_scale = row_scale(prototypes, n, N, D, dtype, METRIC, BLOCK_N, BLOCK_D)
        distance, _ = distance_block(
            query, prototypes, q, n, Q, N, D, x_scale, c_scale, dtype, METRIC, PRECISION, BLOCK_Q, BLOCK_N, BLOCK_D
        )
        distance = tl.where(n[None, :] < N, distance, INFINITY)
        least, total = online_log_sum_exp(least, total, distance, rate)
        inside = (q[:, None] < Q) & (n[None, :] < N)
        if distances is not None:
            tl.store(distances + row[:, None] * N + n[None, :], distance, inside)
        if ONE_BLOCK:
            out = (least[:, None] - distance) * rate - accurate_log(total)[:, None]
            tl.store(log_probs + row[:, None] * N + n[None, :], out.to(log_probs.dtype.element_ty), inside)
        if prototype_scale is not None:
            tl.store(prototype_scale + task * scale_stride + n, c_scale, n < tl.where(q_block == 0, N, 0))
    if nearest is not None:
        tl.store(nearest + row, least, q < Q)
        tl.store(log_sum + row, accurate_log(total), q < Q)
    if query_scale is not None:
        tl.store(query_scale + row, x_scale, q < Q)
    if not ONE_BLOCK:
        tl.debug_barrier()  # the distances are read back by other threads of this program
        for start in range(0, N, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            inside = (q[:, None] < Q) & (n[None, :] < N)
            distance = tl.load(distances + row[:, None] * N + n[None, :], inside, 0.0)
            out = (least[:, None] - distance) * rate - accurate_log(total)[:, None]
            tl.store(log_probs + row[:, None] * N + n[None, :], out.to(log_probs.dtype.element_ty), inside)


def proto_log_softmax_fwd(
    query: Tensor, prototypes: Tensor, temperature: float | Tensor, metric: str, needs: tuple[bool, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    log_probs = query.new_empty(*query.shape[:-1], prototypes.shape[-2])
    q, c = dense(query, 2), dense(prototypes, 2)
    (tasks, queries, features), ways = q.shape, c.shape[1]
    options = tile_options(q, ways)
    one_block = ways <= options["BLOCK_N"]
    kept = kept_tensors(q, c, metric) if any(needs) else (None,) * 4
    keep = any(needs) and options["PRECISION"] is None
    distances = None
    if keep or not one_block:
        in_output = not keep and log_probs.dtype == accumulator(query)
        distances = log_probs if in_output else q.new_empty(tasks, queries, ways, dtype=accumulator(query))
    launch(
        _proto_log_softmax_fwd_kernel,
        tasks * triton.cdiv(queries, options["BLOCK_Q"]),
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
        **options,
    )
    return (log_probs,), (*kept, distances if keep else None) if any(needs) else ()


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

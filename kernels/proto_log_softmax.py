"""log p(y = k | x) = log_softmax_k(-d(x, c_k) / temperature).

Forward: a program owns BLOCK_Q queries of a task; differences, logits and the online log-sum-exp stay in registers. Up
to BLOCK_N ways go straight to the output; more are written as distances, and turned into log probabilities by the same
program while they are in cache. Moved: query and output once, prototypes once a program (from cache).
Backward: one pass over [Q, N], a program owning BLOCK_Q rows, turns the cotangent into the coefficients of the
differences; a second launch gives both gradients. Distances are kept from forward, so none is computed twice.
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
    load_rate,
    merge_tasks,
    metric_limit,
    online_log_sum_exp,
    temperature_arguments,
    tile_options,
)
from ._launch import accumulator, launch, power_of_two, triton_dtype


@triton.jit
def _proto_log_softmax_fwd_kernel(
    query,
    prototypes,
    temperature_tensor,
    temperature_value: tl.float64,
    log_probs,
    distances,
    nearest,
    log_sum,
    query_stride,
    prototypes_stride,
    Q,
    N,
    D,
    dtype: tl.constexpr,
    SQUARED: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
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
    least = tl.full((BLOCK_Q,), INFINITY, dtype)
    total = tl.zeros((BLOCK_Q,), dtype)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        distance = distance_block(query, prototypes, q, n, Q, N, D, dtype, SQUARED, BLOCK_Q, BLOCK_N, BLOCK_D)
        distance = tl.where(n[None, :] < N, distance, INFINITY)
        least, total = online_log_sum_exp(least, total, distance, rate)
        inside = (q[:, None] < Q) & (n[None, :] < N)
        if distances is not None:
            tl.store(distances + row[:, None] * N + n[None, :], distance, inside)
        if ONE_BLOCK:
            out = (least[:, None] - distance) * rate - accurate_log(total)[:, None]
            tl.store(log_probs + row[:, None] * N + n[None, :], out.to(log_probs.dtype.element_ty), inside)
    if distances is not None:
        tl.store(nearest + row, least, q < Q)
        tl.store(log_sum + row, accurate_log(total), q < Q)
    if not ONE_BLOCK:
        tl.debug_barrier()  # the distances are read back by other threads of this program
        for start in range(0, N, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            inside = (q[:, None] < Q) & (n[None, :] < N)
            distance = tl.load(distances + row[:, None] * N + n[None, :], inside, 0.0)
            out = (least[:, None] - distance) * rate - accurate_log(total)[:, None]
            tl.store(log_probs + row[:, None] * N + n[None, :], out.to(log_probs.dtype.element_ty), inside)


def proto_log_softmax_limit(query: Any, prototypes: Any, temperature: Any, metric: str) -> str | None:
    return metric_limit(metric)


def proto_log_softmax_fwd(
    query: Tensor, prototypes: Tensor, temperature: float | Tensor, metric: str, needs: tuple[bool, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    log_probs = query.new_empty(*query.shape[:-1], prototypes.shape[-2])
    q, c = merge_tasks(query, prototypes)
    (tasks, queries, features), ways = q.shape, c.shape[1]
    options = tile_options(q, c)
    one_block = ways <= options["BLOCK_N"]
    kept: tuple[Any, ...] = (None, None, None)
    if any(needs) or not one_block:
        distances = log_probs.new_empty(tasks, queries, ways, dtype=accumulator(query))
        kept = (distances, *distances.new_empty(2, tasks, queries))
    launch(
        _proto_log_softmax_fwd_kernel,
        tasks * triton.cdiv(queries, options["BLOCK_Q"]),
        query,
        q,
        c,
        *temperature_arguments(temperature),
        log_probs,
        *kept,
        q.stride(0),
        c.stride(0),
        queries,
        ways,
        features,
        dtype=triton_dtype(query),
        SQUARED=metric == "sqeuclidean",
        ONE_BLOCK=one_block,
        **options,
    )
    return (log_probs,), kept if any(needs) else ()


@triton.jit
def _proto_log_softmax_bwd_kernel(
    dlog_probs,
    distances,
    nearest,
    log_sum,
    temperature_tensor,
    temperature_value: tl.float64,
    coefficients,
    dtemperature,
    ROWS,
    N,
    dtype: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    rate = load_rate(temperature_tensor, temperature_value, dtype)
    total = tl.zeros((BLOCK_Q,), dtype)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        inside = (row[:, None] < ROWS) & (n[None, :] < N)
        total += tl.sum(tl.load(dlog_probs + row[:, None] * N + n[None, :], inside, 0.0).to(dtype), 1)
    least = tl.load(nearest + row, row < ROWS, 0.0)
    log_total = tl.load(log_sum + row, row < ROWS, 0.0)
    scaled = tl.zeros((BLOCK_Q,), dtype)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        inside = (row[:, None] < ROWS) & (n[None, :] < N)
        at = row[:, None] * N + n[None, :]
        distance = tl.load(distances + at, inside, 0.0)
        farther = distance - least[:, None]  # serves dtemperature too: a row of dlogits sums to 0
        probs = tl.exp(-farther * rate - log_total[:, None])
        dlogits = tl.load(dlog_probs + at, inside, 0.0).to(dtype) - probs * total[:, None]
        scaled += tl.sum(tl.where(inside, dlogits * farther, 0.0), 1)
        tl.store(coefficients + at, distance_coefficient(dlogits, distance, rate, SQUARED), inside)
    if dtemperature is not None:
        tl.store(dtemperature + row, scaled * rate * rate, row < ROWS)


def proto_log_softmax_bwd(
    cotangents: tuple[Tensor, ...],
    saved: tuple[Tensor, ...],
    query: Tensor,
    prototypes: Tensor,
    temperature: float | Tensor,
    metric: str,
    needs: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    distances, nearest, log_sum = saved or proto_log_softmax_fwd(query, prototypes, temperature, metric, needs)[1]
    rows, ways = nearest.numel(), distances.shape[2]
    coefficients = torch.empty_like(distances)
    dtemperature = torch.empty_like(nearest) if needs[2] else None
    block_n = power_of_two(ways, 1, 128)
    block_q = power_of_two(rows, 1, 1024 // block_n)
    launch(
        _proto_log_softmax_bwd_kernel,
        triton.cdiv(rows, block_q),
        query,
        cotangents[0].contiguous(),
        distances,
        nearest,
        log_sum,
        *temperature_arguments(temperature),
        coefficients,
        dtemperature,
        rows,
        ways,
        dtype=triton_dtype(query),
        SQUARED=metric == "sqeuclidean",
        BLOCK_Q=block_q,
        BLOCK_N=block_n,
        num_warps=4,
    )
    grads = distance_gradients(query, prototypes, needs, lambda first, last: coefficients, max(nearest.shape[1], 1))
    if dtemperature is not None and isinstance(temperature, Tensor):
        grads.append(dtemperature.sum().to(temperature.dtype))
    return tuple(grads)

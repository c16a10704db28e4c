"""The gradients of the distance ops, dx_i = sum_j w_ij (x_i - y_j), both sides in one launch and without atomics.

A program owns rows of dquery or rows of dprototypes, and BLOCK_E of their features (all where one block holds every column),
and walks the rows of the other side in blocks. In registers: the block's distances, computed anew unless kept, from which
the nearest and the log-sum-exp of each query give w, [BLOCK_I, BLOCK_J], and the sums. 2 instructions per (i, j, d) for the
distances and as many for the sums, by differences or, with centred rows, by tl.dot (see _distance.py). Moved: own rows and
gradients once, the other side's rows once a program (from cache). Where few programs own the prototypes, several share the
queries of one block: the last, told by a counter, adds their parts in order. Cosine: <u, sum w (u - v)> = sum w d.
One more tiny launch each: the sum of dtemperature, and row_totals of many columns.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._distance import column_mean, distance_block, first_column, load_rate, load_rows, tf32_rounded
from ._dlogits import across, class_block, distance_coefficient, dlogits_block, row_totals
from ._launch import counters, dense, launch, triton_dtype
from ._tiles import gradient_options, temperature_arguments


@triton.jit
def _add_by_differences(total, w, x, y, j, y_rows, d, D, y_scale, dtype: tl.constexpr):
    """total [I, J, E] plus w_ij (x_i - y_j), x [I, 1, E] being loaded; the sum over j is taken at the end."""
    d = d[None, None, :]
    b = tl.load(y + j[None, :, None] * D + d, (j[None, :, None] < y_rows) & (d < D), 0.0).to(dtype)
    if y_scale is not None:
        b *= y_scale[None, :, None]
    return total + w[:, :, None] * (x - b)


@triton.jit
def _add_by_dot(total, w, near, x, y, j, y_rows, d, D, y_scale, dtype: tl.constexpr, PRECISION: tl.constexpr, BLOCK_J: tl.constexpr):
    """total [I, E] plus sum_j w_ij (x_i - y_j), x [I, E] being loaded; near pairs by differences, one a row at a time."""
    b = load_rows(y, j, y_rows, d, D, y_scale, dtype)
    centre = column_mean(b, j, y_rows)
    far = tf32_rounded(tl.where(near, 0.0, w), PRECISION)
    total += tl.sum(far, 1)[:, None] * (x - centre)
    total = tl.dot(-far, tf32_rounded(b - centre, PRECISION), total, input_precision=PRECISION)
    while tl.max(near.to(tl.int32)) > 0:
        chosen, picked = first_column(near, j, BLOCK_J)
        scale = None if y_scale is None else tl.sum(tl.where(chosen, y_scale[None, :], 0.0), 1)
        weight = tl.sum(tl.where(chosen, w, 0.0), 1)
        total += weight[:, None] * (x - load_rows(y, picked, y_rows, d, D, scale, dtype))
        near = near & (chosen == 0)
    return total


@triton.jit
def _own_rows(x, i, x_rows, d, D, x_scale, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """[I, 1, E] for differences, [I, E] for tl.dot."""
    if PRECISION is not None:
        return load_rows(x, i, x_rows, d, D, x_scale, dtype)
    else:
        at = i[:, None, None] * D + d[None, None, :]
        value = tl.load(x + at, (i[:, None, None] < x_rows) & (d[None, None, :] < D), 0.0).to(dtype)
        return value if x_scale is None else value * x_scale[:, None, None]


@triton.jit
def _gradients_kernel(
    query,
    prototypes,
    temperature_tensor,
    temperature_value: tl.float64,
    nearest,
    log_sum,
    query_scale,
    prototype_scale,
    distances,
    dloss,
    counts,
    targets,
    dlog_probs,
    totals,
    log_probs,
    labels,
    dquery,
    dprototypes,
    dtemperature,
    parts,
    counter,
    query_programs,
    query_stride,
    prototypes_stride,
    query_e,
    prototype_e,
    T,
    Q,
    N,
    D,
    C,
    splits,
    group,
    ignore_index,
    dtype: tl.constexpr,
    METRIC: tl.constexpr,
    PRECISION: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    rate = load_rate(temperature_tensor, temperature_value, dtype)
    softmax = nearest, log_sum, dloss, counts, targets, dlog_probs, totals, log_probs, labels
    sizes = Q, N, D, C, group, ignore_index
    program = tl.program_id(0)
    if program < query_programs:
        if dquery is not None or dtemperature is not None:
            e, q_block = program % query_e, program // query_e
            q_blocks = tl.cdiv(Q, BLOCK_Q)
            task = (q_block // q_blocks).to(tl.int64)
            q = ((q_block % q_blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)).to(tl.int64)
            sides = query + task * query_stride, prototypes + task * prototypes_stride, query_scale, prototype_scale
            if ONE_BLOCK:
                scaled = _all_features(
                    dquery, sides, task, q, rate, softmax, distances, sizes,
                    dtype, METRIC, BLOCK_Q, BLOCK_N, BLOCK_D, BLOCK_C
                )
            else:
                dx, scaled = _sums(
                    sides, task, q, e, 0, N, rate, softmax, distances, sizes,
                    dtype, METRIC, PRECISION, True, BLOCK_Q, BLOCK_N, BLOCK_D, BLOCK_E, BLOCK_C
                )
                if dquery is not None:
                    _store(dquery + task * Q * D, dx, q, Q, e * BLOCK_E + tl.arange(0, BLOCK_E), D)
            if dtemperature is not None:
                tl.store(dtemperature + task * Q + q, scaled * rate * rate, q < tl.where(e == 0, Q, 0))
    else:
        if dprototypes is not None:
            index = program - query_programs
            n_blocks = tl.cdiv(N, BLOCK_N)
            slots = T * n_blocks * prototype_e
            part, slot = (index // slots).to(tl.int64), index % slots
            e, n_block = slot % prototype_e, slot // prototype_e
            task = (n_block // n_blocks).to(tl.int64)
            n = ((n_block % n_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
            sides = prototypes + task * prototypes_stride, query + task * query_stride, prototype_scale, query_scale
            share = tl.cdiv(tl.cdiv(Q, splits), BLOCK_Q) * BLOCK_Q
            dx, _ = _sums(
                sides, task, n, e, part * share, tl.minimum(part * share + share, Q), rate, softmax, distances, sizes,
                dtype, METRIC, PRECISION, False, BLOCK_N, BLOCK_Q, BLOCK_D, BLOCK_E, BLOCK_C
            )
            d = e * BLOCK_E + tl.arange(0, BLOCK_E)
            if parts is None:
                _store(dprototypes + task * N * D, dx, n, N, d, D)
            else:
                _store(parts + (part * T + task) * N * D, dx, n, N, d, D)
                tl.debug_barrier()  # all threads' stores come before the count
                if tl.atomic_add(counter + slot, 1, sem="acq_rel") == splits - 1:
                    dx = tl.zeros((BLOCK_N, BLOCK_E), dtype)
                    for i in range(0, splits):
                        dx += load_rows(parts + (i * T + task) * N * D, n, N, d, D, None, dtype)
                    _store(dprototypes + task * N * D, dx, n, N, d, D)
                    tl.store(counter + slot, 0)  # as the next launch expects it


@triton.jit
def _store(out, dx, i, x_rows, d, D):
    tl.store(
        out + i[:, None] * D + d[None, :], dx.to(out.dtype.element_ty), (i[:, None] < x_rows) & (d[None, :] < D)
    )


@triton.jit
def _block(
    sides, task, i, j, x_rows, y_rows, i_scale, j_scale, rate, softmax, distances, sizes,
    dtype: tl.constexpr, METRIC: tl.constexpr, PRECISION: tl.constexpr, OF_QUERY: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr
):
    """w [BLOCK_I, BLOCK_J], which pairs are near, and the sums over j of w d and of dL/dz (d - nearest)."""
    q, n = (i, j) if OF_QUERY else (j, i)
    inside = (i[:, None] < x_rows) & (j[None, :] < y_rows)
    if distances is not None:
        at = across(task * sizes[0] + q, OF_QUERY) * sizes[1] + across(n, not OF_QUERY)
        distance = tl.load(distances + at, inside, 0.0)
        near = distance < 0
    else:
        distance, near = distance_block(
            sides[0], sides[1], i, j, x_rows, y_rows, sizes[2], i_scale, j_scale, dtype, METRIC, PRECISION, BLOCK_I, BLOCK_J, BLOCK_D
        )
    dlogits, farther = dlogits_block(distance, q, n, task, rate, softmax, sizes, dtype, OF_QUERY, BLOCK_C)
    w = distance_coefficient(dlogits, distance, rate, METRIC)
    along = tl.sum(tl.where(inside, w * distance, 0.0), 1)
    return w, near, along, tl.sum(tl.where(inside, dlogits * farther, 0.0), 1)


@triton.jit
def _project(dx, along, x, i, x_rows, d, D, x_scale, dtype: tl.constexpr):
    """The gradient of x from that of u = x / |x|, where rows are scaled: (du - <u, du> u) / |x|."""
    if x_scale is None:
        return dx
    else:
        return x_scale[:, None] * (dx - along[:, None] * load_rows(x, i, x_rows, d, D, x_scale, dtype))


@triton.jit
def _scale(scale, at, i, x_rows):
    return None if scale is None else tl.load(scale + at + i, i < x_rows, 0.0)


@triton.jit
def _all_features(
    dquery, sides, task, q, rate, softmax, distances, sizes,
    dtype: tl.constexpr, METRIC: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr
):
    """dquery of BLOCK_Q queries, where one block holds all columns; returns their part in dtemperature."""
    Q, N, D = sizes[0], sizes[1], sizes[2]
    n = tl.arange(0, BLOCK_N).to(tl.int64)
    x_scale, c_scale = _scale(sides[2], task * Q, q, Q), _scale(sides[3], task * N, n, N)
    w, _, along, scaled = _block(
        sides, task, q, n, Q, N, x_scale, c_scale, rate, softmax, distances, sizes,
        dtype, METRIC, None, True, BLOCK_Q, BLOCK_N, BLOCK_D, BLOCK_C
    )
    if dquery is not None:
        for start in tl.range(0, D, BLOCK_D, num_stages=3):
            d = start + tl.arange(0, BLOCK_D)
            x = _own_rows(sides[0], q, Q, d, D, x_scale, dtype, None)
            zero = tl.zeros((BLOCK_Q, BLOCK_N, BLOCK_D), dtype)
            dx = tl.sum(_add_by_differences(zero, w, x, sides[1], n, N, d, D, c_scale, dtype), 1)
            _store(dquery + task * Q * D, _project(dx, along, sides[0], q, Q, d, D, x_scale, dtype), q, Q, d, D)
    return scaled


@triton.jit
def _sums(
    sides, task, i, e, first, last, rate, softmax, distances, sizes,
    dtype: tl.constexpr, METRIC: tl.constexpr, PRECISION: tl.constexpr, OF_QUERY: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr
):
    """The gradient [BLOCK_I, BLOCK_E] of rows i from the rows first <= j < last of the other side, and the part of rows i in
    dtemperature, if they are queries."""
    D = sizes[2]
    x_rows, y_rows = (sizes[0], sizes[1]) if OF_QUERY else (sizes[1], sizes[0])
    d = e * BLOCK_E + tl.arange(0, BLOCK_E)
    x_scale = _scale(sides[2], task * x_rows, i, x_rows)
    x = _own_rows(sides[0], i, x_rows, d, D, x_scale, dtype, PRECISION)
    total = tl.zeros((BLOCK_I, BLOCK_J, BLOCK_E) if PRECISION is None else (BLOCK_I, BLOCK_E), dtype)
    along, scaled = tl.zeros((BLOCK_I,), dtype), tl.zeros((BLOCK_I,), dtype)
    for start in range(first, last, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J).to(tl.int64)
        y_scale = _scale(sides[3], task * y_rows, j, y_rows)
        w, near, w_distance, z_distance = _block(
            sides, task, i, j, x_rows, last, x_scale, y_scale, rate, softmax, distances, sizes,
            dtype, METRIC, PRECISION, OF_QUERY, BLOCK_I, BLOCK_J, BLOCK_D, BLOCK_C
        )
        along, scaled = along + w_distance, scaled + z_distance
        if PRECISION is None:
            total = _add_by_differences(total, w, x, sides[1], j, last, d, D, y_scale, dtype)
        else:
            total = _add_by_dot(
                total, w, near, x, sides[1], j, last, d, D, y_scale, dtype, PRECISION, BLOCK_J
            )
    dx = tl.sum(total, 1) if PRECISION is None else total
    return _project(dx, along, sides[0], i, x_rows, d, D, x_scale, dtype), scaled


def distance_gradients(
    query: Tensor,
    prototypes: Tensor,
    temperature: float | Tensor,
    metric: str,
    kept: list[Any],
    needs: tuple[bool, ...],
    *,
    distances: Tensor | None = None,
    dloss: Tensor | None = None,
    counts: Tensor | None = None,
    targets: Tensor | None = None,
    dlog_probs: Tensor | None = None,
    log_probs: Tensor | None = None,
    labels: Tensor | None = None,
    group: int = 1,
    ignore_index: int = 0,
) -> tuple[Tensor, ...]:
    """The gradients of query, prototypes and temperature, of those that are needed; `kept`: see `kept_tensors`."""
    q, c = merge_tasks(query, prototypes)
    (tasks, queries, features), ways = q.shape, c.shape[1]
    options = gradient_options(q, ways)
    block_e = options["BLOCK_E"]
    one_block = options["PRECISION"] is None and ways <= options["BLOCK_N"]
    dquery, dprototypes = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) if need else None
        for x, need in zip((query, prototypes), needs, strict=False)
    )
    dtemperature = torch.empty_like(kept[0]) if needs[2] else None
    if queries == 0 and dprototypes is not None:
        dprototypes.zero_()
    e_blocks = max(triton.cdiv(features, block_e), 1)
    query_e = 1 if one_block or dquery is None else e_blocks
    query_programs = tasks * triton.cdiv(queries, options["BLOCK_Q"]) * query_e if needs[0] or needs[2] else 0
    slots = tasks * triton.cdiv(ways, options["BLOCK_N"]) * e_blocks if needs[1] and queries else 0
    splits = max(min(triton.cdiv(queries, 8 * options["BLOCK_Q"]), 512 // max(slots, 1)), 1)
    parts = kept[0].new_empty(splits, *c.shape) if slots and splits > 1 else None
    launch(
        _gradients_kernel,
        query_programs + splits * slots,
        query,
        q,
        c,
        *temperature_arguments(temperature),
        *kept,
        distances,
        dloss,
        counts,
        targets,
        dlog_probs,
        row_totals(dlog_probs, log_probs),
        log_probs,
        labels,
        dquery,
        dprototypes,
        dtemperature,
        parts,
        None if parts is None else counters(query, slots),
        query_programs,
        q.stride(0),
        c.stride(0),
        query_e,
        e_blocks,
        tasks,
        queries,
        ways,
        features,
        1 if dlog_probs is None else dlog_probs.shape[-1],
        splits,
        group,
        ignore_index,
        dtype=triton_dtype(query),
        METRIC=metric,
        ONE_BLOCK=one_block,
        BLOCK_C=class_block(dlog_probs),
        **options,
    )
    grads = [x for x in (dquery, dprototypes) if x is not None]
    if dtemperature is not None and isinstance(temperature, Tensor):
        grads.append(dtemperature.sum().to(temperature.dtype))
    return tuple(grads)


def merge_tasks(query: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Both as [T, rows, D]; tasks that share their prototypes become one task, so that each gradient has one owner."""
    shared = prototypes.ndim == 2
    query, prototypes = dense(query, 2), dense(prototypes, 2)
    return (query.reshape(1, query.shape[0] * query.shape[1], query.shape[2]) if shared else query), prototypes

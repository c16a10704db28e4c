"""The kernel of _distance_bwd.py: rows of dquery or of dprototypes, and what else the distances give, by a program."""

from __future__ import annotations

import triton
import triton.language as tl

from ._distance import load_rate, load_rows
from ._distance_sums import all_features, store_rows, sums


@triton.jit(
    do_not_specialize=(
        "query_programs",
        "query_stride",
        "prototypes_stride",
        "query_e",
        "prototype_e",
        "T",
        "Q",
        "N",
        "C",
        "splits",
        "share",
        "group",
        "ignore_index",
    )
)
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
    exclude,
    target_distance,
    bias,
    classes,
    own_nearest,
    own_log_sum,
    shares,
    share_sum,
    dshares,
    dquery,
    dprototypes,
    dtemperature,
    dbias,
    parts,
    bias_parts,
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
    share,
    group,
    ignore_index,
    dtype: tl.constexpr,
    METRIC: tl.constexpr,
    MARGIN: tl.constexpr,
    SMOOTHING: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    rate = load_rate(temperature_tensor, temperature_value, dtype)
    softmax = (
        nearest, log_sum, dloss, counts, targets, dlog_probs, totals, log_probs, labels, exclude, target_distance,
        bias, classes, own_nearest, own_log_sum, shares, share_sum, dshares
    )  # fmt: skip
    sizes = Q, N, D, C, group, ignore_index
    program = tl.program_id(0)
    if program < query_programs:
        if dquery is not None or dtemperature is not None or dshares is not None:
            e, q_block = program % query_e, program // query_e
            q_blocks = tl.cdiv(Q, BLOCK_Q)
            task = (q_block // q_blocks).to(tl.int64)
            q = ((q_block % q_blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)).to(tl.int64)
            rows = query + task * query_stride * D, prototypes + task * prototypes_stride * D
            sides = rows[0], rows[1], query_scale, prototype_scale
            if ONE_BLOCK:
                scaled = all_features(
                    dquery, sides, task, q, rate, softmax, distances, sizes,
                    dtype, METRIC, MARGIN, SMOOTHING, BLOCK_Q, BLOCK_N, BLOCK_D, BLOCK_C
                )  # fmt: skip
            else:
                dq, scaled = sums(
                    sides, task, q, e, 0, N, rate, softmax, distances, sizes,
                    dtype, METRIC, MARGIN, SMOOTHING, ONE_BLOCK, True, False,
                    BLOCK_Q, BLOCK_N, BLOCK_D, BLOCK_E, BLOCK_C
                )  # fmt: skip
                if dquery is not None:
                    store_rows(dquery + task * Q * D, dq, q, Q, e * BLOCK_E + tl.arange(0, BLOCK_E), D)
            if dtemperature is not None:
                tl.store(dtemperature + task * Q + q, scaled * rate * rate, q < tl.where(e == 0, Q, 0))
    else:
        if dprototypes is not None or dbias is not None:
            index = program - query_programs
            n_blocks = tl.cdiv(N, BLOCK_N)
            slots = T * n_blocks * prototype_e
            part, slot = (index // slots).to(tl.int64), index % slots
            e, n_block = slot % prototype_e, slot // prototype_e
            task = (n_block // n_blocks).to(tl.int64)
            n = ((n_block % n_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
            rows = query + task * query_stride * D, prototypes + task * prototypes_stride * D
            sides = rows[0], rows[1], query_scale, prototype_scale
            dc, db = sums(
                sides, task, n, e, part * share, tl.minimum(part * share + share, Q),
                rate, softmax, distances, sizes,
                dtype, METRIC, MARGIN, SMOOTHING, ONE_BLOCK, False, dbias is not None,
                BLOCK_Q, BLOCK_N, BLOCK_D, BLOCK_E, BLOCK_C
            )  # fmt: skip
            d = e * BLOCK_E + tl.arange(0, BLOCK_E)
            own = n < tl.where(e == 0, N, 0)
            if splits == 1:
                if dprototypes is not None:
                    store_rows(dprototypes + task * N * D, dc, n, N, d, D)
                if dbias is not None:
                    tl.store(dbias + task * N + n, db, own)
            else:
                if dprototypes is not None:
                    store_rows(parts + (part * T + task) * N * D, dc, n, N, d, D)
                if dbias is not None:
                    tl.store(bias_parts + (part * T + task) * N + n, db, own)
                tl.debug_barrier()  # all threads' stores come before the count
                if tl.atomic_add(counter + slot, 1, sem="acq_rel") == splits - 1:
                    if dprototypes is not None:
                        dc = tl.zeros((BLOCK_N, BLOCK_E), dtype)
                        for i in range(0, splits):
                            dc += load_rows(parts + (i * T + task) * N * D, n, N, d, D, None, dtype)
                        store_rows(dprototypes + task * N * D, dc, n, N, d, D)
                    if dbias is not None:
                        db = tl.zeros((BLOCK_N,), dtype)
                        for i in range(0, splits):
                            db += tl.load(bias_parts + (i * T + task) * N + n, own, 0.0)
                        tl.store(dbias + task * N + n, db, own)

"""Between the products of many columns: the weights w of the gradients in place of products, and near pairs. See _products.py.

Moved: products read and weights written once, 16 bytes a thread; for near pairs, the rows of each. A block of weights has a flag:
whether a pair of it is near. Only then is it looked at again.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._distance import block_of_rows, distance_block, first_column, load_rate, load_rows, load_scale, tf32_rounded
from ._dlogits import distance_coefficient, dlogits_block

HALF_MOST = tl.constexpr(6e4)  # of float16


@triton.jit(
    do_not_specialize=(
        "query_stride", "prototypes_stride", "scale_stride", "Q", "N", "C", "first_task", "first_row", "rows", "group", "ignore_index",
    )
)  # fmt: skip
def weights_kernel(
    query,
    prototypes,
    temperature_tensor,
    temperature_value: tl.float64,
    nearest,
    log_sum,
    query_scale,
    prototype_scale,
    products,
    x_square,
    y_square,
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
    weights,
    close,
    flags,
    factor,
    dtemperature,
    dbias,
    query_stride,
    prototypes_stride,
    scale_stride,
    Q,
    N,
    D,
    C,
    first_task,
    first_row,
    rows,
    WIDTH,
    group,
    ignore_index,
    dtype: tl.constexpr,
    METRIC: tl.constexpr,
    MARGIN: tl.constexpr,
    SMOOTHING: tl.constexpr,
    NEAR: tl.constexpr,
    TF32: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """w of a block of pairs, 0 for near ones, whose w goes to `close`; each query's part in dtemperature, by block; for dbias the sums of
    dL/dz over the block's queries."""
    n_blocks = tl.cdiv(N, BLOCK_N)
    program, n_block = tl.program_id(0) // n_blocks, tl.program_id(0) % n_blocks
    task, q, place = block_of_rows(program, rows, first_task, first_row, BLOCK_Q)
    n = n_block * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    last = first_row + rows
    query += task * query_stride * D
    prototypes += task * prototypes_stride * D
    rate = load_rate(temperature_tensor, temperature_value, dtype)
    x_scale = load_scale(query_scale, task * Q, q, last)
    c_scale = load_scale(prototype_scale, task * scale_stride, n, N)
    given = products, place * WIDTH, x_square + task * Q, y_square + task * WIDTH, WIDTH, NEAR
    distance, near = distance_block(
        query, prototypes, q, n, last, N, D, x_scale, c_scale, given, dtype, METRIC, BLOCK_Q, BLOCK_N, BLOCK_D
    )
    softmax = (
        nearest, log_sum, dloss, counts, targets, dlog_probs, totals, log_probs, labels, exclude, target_distance,
        bias, classes, own_nearest, own_log_sum, shares, share_sum, dshares
    )  # fmt: skip
    sizes = Q, N, D, C, group, ignore_index
    dlogits, farther, whole = dlogits_block(
        distance, q, n, task, rate, softmax, sizes, last, dtype, MARGIN, SMOOTHING, False, BLOCK_C
    )
    inside = (q[:, None] < last) & (n[None, :] < N)
    w = tl.where(inside, distance_coefficient(dlogits, distance, rate, METRIC), 0.0)
    if factor is not None:
        w *= tl.load(factor)
        near |= tl.abs(w) > HALF_MOST
    near &= inside & (w == w) & (w != 0)
    far = tl.where(near, 0.0, w)
    if TF32:
        far = tf32_rounded(far)
    at, width = place[:, None] * WIDTH + n[None, :], (q[:, None] < last) & (n[None, :] < WIDTH)
    tl.store(weights + at, far.to(weights.dtype.element_ty), width)
    found = tl.max(tl.max(near.to(tl.int32), 1), 0)
    tl.store(flags + tl.program_id(0), found)
    if found > 0:
        tl.debug_barrier()  # `close` may be in the place of the products
        tl.store(close + at, tl.where(near, w, 0.0), width)
    if dtemperature is not None:
        scaled = tl.sum(tl.where(inside, dlogits * farther, 0.0), 1) * rate * rate
        tl.store(dtemperature + (task * Q + q) * n_blocks + n_block, scaled, q < last)
    if dbias is not None:
        in_part = tl.where(q[:, None] < last, whole, 0.0)
        tl.store(dbias + program.to(tl.int64) * N + n, tl.sum(in_part, 0), n < N)


@triton.jit(
    do_not_specialize=(
        "query_stride", "prototypes_stride", "scale_stride", "Q", "N", "first_task", "first_row", "rows", "e_blocks"
    )
)  # fmt: skip
def near_kernel(
    query,
    prototypes,
    query_scale,
    prototype_scale,
    close,
    flags,
    sums,
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
    ONES,
    e_blocks,
    dtype: tl.constexpr,
    OF_QUERY: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Takes sum_j w_ij (x_i - y_j) over near pairs off the sums [rows, ONES + 8] of rows i: queries or prototypes."""
    BLOCK_J: tl.constexpr = BLOCK_N if OF_QUERY else BLOCK_Q
    q_blocks, n_blocks = tl.cdiv(rows, BLOCK_Q), tl.cdiv(N, BLOCK_N)
    own_blocks = tl.cdiv(rows if OF_QUERY else N, BLOCK_I)
    d, index = (tl.program_id(0) % e_blocks) * BLOCK_E + tl.arange(0, BLOCK_E), tl.program_id(0) // e_blocks
    local, begin = (index // own_blocks).to(tl.int64), (index % own_blocks) * BLOCK_I
    i, task = begin + tl.arange(0, BLOCK_I).to(tl.int64), first_task + local
    query += (task * query_stride + first_row) * D
    prototypes += task * prototypes_stride * D
    close += local * rows * WIDTH
    flags += local * q_blocks * n_blocks
    if OF_QUERY:
        flags, step, tiles = flags + begin // BLOCK_Q * n_blocks, 1, n_blocks
        x, y, x_rows, y_rows, row_step, column_step = query, prototypes, rows, N, WIDTH, 1
        own_scale, at, other_scale, other_at = query_scale, task * Q + first_row, prototype_scale, task * scale_stride
        sums += (task * Q + first_row) * (ONES + 8)
    else:
        flags, step, tiles = flags + begin // BLOCK_N, n_blocks, q_blocks
        x, y, x_rows, y_rows, row_step, column_step = prototypes, query, N, rows, 1, WIDTH
        own_scale, at, other_scale, other_at = prototype_scale, task * scale_stride, query_scale, task * Q + first_row
        sums += task * WIDTH * (ONES + 8)
    x_scale = load_scale(own_scale, at, i, x_rows)
    total, met = tl.zeros((BLOCK_I, BLOCK_E), dtype), 0
    for start in range(0, tiles, 64):
        t = start + tl.arange(0, 64)
        if tl.max(tl.load(flags + t * step, t < tiles, 0), 0) > 0:
            met = 1
            for tile in range(start, tl.minimum(start + 64, tiles)):
                if tl.load(flags + tile * step) > 0:
                    j = tile * BLOCK_J + tl.arange(0, BLOCK_J).to(tl.int64)
                    inside = (i[:, None] < x_rows) & (j[None, :] < y_rows)
                    w = tl.load(close + i[:, None] * row_step + j[None, :] * column_step, inside, 0.0)
                    left = w != 0
                    while tl.max(left.to(tl.int32)) > 0:
                        chosen, picked = first_column(left, j, BLOCK_J)
                        weight = tl.sum(tl.where(chosen, w, 0.0), 1)
                        y_scale = load_scale(other_scale, other_at, picked, y_rows)
                        away = load_rows(x, i, x_rows, d, D, x_scale, dtype)
                        away -= load_rows(y, picked, y_rows, d, D, y_scale, dtype)
                        total += weight[:, None] * away
                        left = left & (chosen == 0)
    if met > 0:
        own = sums + i[:, None] * (ONES + 8) + d[None, :]
        inside = (i[:, None] < x_rows) & (d[None, :] < D)
        tl.store(own, tl.load(own, inside, 0.0) - total, inside)

"""sum_j w_ij (x_i - y_j) for a program's rows x_i, walking the rows y_j of the other side in blocks.

In registers: a block's distances, computed anew unless kept, from which the nearest and the log-sum-exp of each query give w,
[BLOCK_Q, BLOCK_N], and the sums. 2 instructions per (i, j, d) for the distances and as many for the sums, by differences or,
with centred rows, by tl.dot (see _distance.py). Cosine: rows are u = x / |x|, and <u, sum w (u - v)> is sum w d.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._distance import column_mean, distance_block, first_column, load_rows, tf32_rounded
from ._dlogits import distance_coefficient, dlogits_block


@triton.jit
def _add_by_differences(total, w, x, y, j, y_rows, d, D, y_scale, dtype: tl.constexpr):
    """total [I, J, E] plus w_ij (x_i - y_j), x [I, 1, E] being loaded; the sum over j is taken at the end."""
    d = d[None, None, :]
    b = tl.load(y + j[None, :, None] * D + d, (j[None, :, None] < y_rows) & (d < D), 0.0).to(dtype)
    if y_scale is not None:
        b *= y_scale[None, :, None]
    return total + w[:, :, None] * (x - b)


@triton.jit
def _add_by_dot(
    total, w, close, x, y, j, y_rows, d, D, y_scale, dtype: tl.constexpr, PRECISION: tl.constexpr, BLOCK_J: tl.constexpr
):
    """total [I, E] plus sum_j (w_ij + close_ij) (x_i - y_j), x [I, E] being loaded; `close`, the weights of near pairs and 0
    elsewhere, by differences, one a row at a time."""
    b = load_rows(y, j, y_rows, d, D, y_scale, dtype)
    centre = column_mean(b, j, y_rows)
    w = tf32_rounded(w, PRECISION)
    total += tl.sum(w, 1)[:, None] * (x - centre)
    total = tl.dot(-w, tf32_rounded(b - centre, PRECISION), total, input_precision=PRECISION)
    left = close != 0
    while tl.max(left.to(tl.int32)) > 0:
        chosen, picked = first_column(left, j, BLOCK_J)
        scale = None if y_scale is None else tl.sum(tl.where(chosen, y_scale[None, :], 0.0), 1)
        weight = tl.sum(tl.where(chosen, close, 0.0), 1)
        total += weight[:, None] * (x - load_rows(y, picked, y_rows, d, D, scale, dtype))
        left = left & (chosen == 0)
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
def _block(
    sides,
    task,
    q,
    n,
    rate,
    softmax,
    distances,
    sizes,
    dtype: tl.constexpr,
    METRIC: tl.constexpr,
    PRECISION: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TIGHT: tl.constexpr,
):
    """w, w d, dL/dz (d - nearest) and which pairs are near, [BLOCK_Q, BLOCK_N] whoever asks, as in forward."""
    Q, N, D = sizes[0], sizes[1], sizes[2]
    inside = (q[:, None] < Q) & (n[None, :] < N)
    if distances is not None:
        distance = tl.load(distances + (task * Q + q[:, None]) * N + n[None, :], inside, 0.0)
        near = distance < 0
    else:
        x_scale = _scale(sides[2], task * Q, q, Q)
        c_scale = _scale(sides[3], task * N, n, N)
        distance, near = distance_block(
            sides[0], sides[1], q, n, Q, N, D, x_scale, c_scale, dtype, METRIC, PRECISION,
            BLOCK_Q, BLOCK_N, BLOCK_D, TIGHT
        )  # fmt: skip
    dlogits, farther = dlogits_block(distance, q, n, task, rate, softmax, sizes, dtype, ONE_BLOCK, BLOCK_C)
    w = distance_coefficient(dlogits, distance, rate, METRIC)
    return w, tl.where(inside, w * distance, 0.0), tl.where(inside, dlogits * farther, 0.0), near


@triton.jit
def _project(dx, along, x, i, x_rows, d, D, x_scale, dtype: tl.constexpr):
    """The gradient of x from that of u = x / |x|, where rows are scaled: (du - <u, du> u) / |x|."""
    if x_scale is None:
        return dx
    else:
        return x_scale[:, None] * (dx - along[:, None] * load_rows(x, i, x_rows, d, D, x_scale, dtype))


@triton.jit
def _scale(scale, at, i, x_rows):
    """None where there is none: Triton 3.6 knows neither `return None` nor a tuple of what such a function returns."""
    if scale is not None:
        return tl.load(scale + at + i, i < x_rows, 0.0)


@triton.jit
def all_features(
    dquery,
    sides,
    task,
    q,
    rate,
    softmax,
    distances,
    sizes,
    dtype: tl.constexpr,
    METRIC: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dquery of BLOCK_Q queries, where one block holds all columns; returns their part in dtemperature."""
    Q, N, D = sizes[0], sizes[1], sizes[2]
    n = tl.arange(0, BLOCK_N).to(tl.int64)
    w, w_distance, scaled, _ = _block(
        sides,
        task,
        q,
        n,
        rate,
        softmax,
        distances,
        sizes,
        dtype,
        METRIC,
        None,
        True,
        BLOCK_Q,
        BLOCK_N,
        BLOCK_D,
        BLOCK_C,
        False,
    )
    if dquery is not None:
        x_scale = _scale(sides[2], task * Q, q, Q)
        c_scale = _scale(sides[3], task * N, n, N)
        along = tl.sum(w_distance, 1)
        for start in tl.range(0, D, BLOCK_D, num_stages=3):
            d = start + tl.arange(0, BLOCK_D)
            x = _own_rows(sides[0], q, Q, d, D, x_scale, dtype, None)
            zero = tl.zeros((BLOCK_Q, BLOCK_N, BLOCK_D), dtype)
            dx = tl.sum(_add_by_differences(zero, w, x, sides[1], n, N, d, D, c_scale, dtype), 1)
            store_rows(dquery + task * Q * D, _project(dx, along, sides[0], q, Q, d, D, x_scale, dtype), q, Q, d, D)
    return tl.sum(scaled, 1)


@triton.jit
def sums(
    sides,
    task,
    i,
    e,
    first,
    last,
    rate,
    softmax,
    distances,
    sizes,
    dtype: tl.constexpr,
    METRIC: tl.constexpr,
    PRECISION: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    OF_QUERY: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TIGHT: tl.constexpr,
):
    """The gradient [BLOCK_I, BLOCK_E] of rows i from the rows first <= j < last of the other side, and the part of rows i in
    dtemperature, if they are queries."""
    BLOCK_I: tl.constexpr = BLOCK_Q if OF_QUERY else BLOCK_N
    BLOCK_J: tl.constexpr = BLOCK_N if OF_QUERY else BLOCK_Q
    own, other, own_scale, other_scale = sides if OF_QUERY else (sides[1], sides[0], sides[3], sides[2])
    x_rows, y_rows = (sizes[0], sizes[1]) if OF_QUERY else (sizes[1], sizes[0])
    d, D = e * BLOCK_E + tl.arange(0, BLOCK_E), sizes[2]
    x_scale = _scale(own_scale, task * x_rows, i, x_rows)
    if not TIGHT:
        x = _own_rows(own, i, x_rows, d, D, x_scale, dtype, PRECISION)
    total = tl.zeros((BLOCK_I, BLOCK_J, BLOCK_E) if PRECISION is None else (BLOCK_I, BLOCK_E), dtype)
    along, scaled = tl.zeros((BLOCK_I,), dtype), tl.zeros((BLOCK_I,), dtype)
    for start in range(first, last, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J).to(tl.int64)
        q, n = (i, j) if OF_QUERY else (j, i)
        w, w_distance, z_distance, near = _block(
            sides, task, q, n, rate, softmax, distances, sizes,
            dtype, METRIC, PRECISION, ONE_BLOCK, BLOCK_Q, BLOCK_N, BLOCK_D, BLOCK_C, TIGHT
        )  # fmt: skip
        along += tl.sum(w_distance, 1 if OF_QUERY else 0)
        close, w = tl.where(near, w, 0.0), tl.where(near, 0.0, w)
        if OF_QUERY:
            scaled += tl.sum(z_distance, 1)
        else:
            w, close = tl.trans(w), tl.trans(close)
        y_scale = _scale(other_scale, task * y_rows, j, y_rows)
        if PRECISION is None:
            total = _add_by_differences(total, w, x, other, j, y_rows, d, D, y_scale, dtype)
        else:
            if TIGHT:  # from cache
                x = _own_rows(own, i, x_rows, d, D, x_scale, dtype, PRECISION)
            total = _add_by_dot(total, w, close, x, other, j, y_rows, d, D, y_scale, dtype, PRECISION, BLOCK_J)
    dx = tl.sum(total, 1) if PRECISION is None else total
    return _project(dx, along, own, i, x_rows, d, D, x_scale, dtype), scaled


@triton.jit
def store_rows(out, dx, i, x_rows, d, D):
    tl.store(out + i[:, None] * D + d[None, :], dx.to(out.dtype.element_ty), (i[:, None] < x_rows) & (d[None, :] < D))

"""sum_j w_ij (x_i - y_j) for a program's rows x_i, walking the rows y_j of the other side in blocks.

In registers: a block's distances, computed anew unless kept, from which the nearest and the log-sum-exp of each query give w,
[BLOCK_Q, BLOCK_N], and the sums. 2 instructions per (i, j, d) for the distances and as many for the sums.
Cosine: rows are u = x / |x|, and <u, sum w (u - v)> is sum w d.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._distance import distance_block, load_rows, load_scale
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
def _own_rows(x, i, x_rows, d, D, x_scale, dtype: tl.constexpr):
    """[I, 1, E]."""
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
    own_rows,
    dtype: tl.constexpr,
    METRIC: tl.constexpr,
    MARGIN: tl.constexpr,
    SMOOTHING: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """w, w d, dL/dz (d - nearest) and dL/dz, [BLOCK_Q, BLOCK_N] whoever asks, as in forward."""
    Q, N, D = sizes[0], sizes[1], sizes[2]
    inside = (q[:, None] < Q) & (n[None, :] < N)
    if distances is not None:
        distance = tl.load(distances + (task * Q + q[:, None]) * N + n[None, :], inside, 0.0)
    else:
        x_scale = load_scale(sides[2], task * Q, q, Q)
        c_scale = load_scale(sides[3], task * N, n, N)
        distance, _ = distance_block(
            sides[0], sides[1], q, n, Q, N, D, x_scale, c_scale, (None,), dtype, METRIC, BLOCK_Q, BLOCK_N, BLOCK_D
        )
    dlogits, farther, whole = dlogits_block(
        distance, q, n, task, rate, softmax, sizes, own_rows, dtype, MARGIN, SMOOTHING, ONE_BLOCK, BLOCK_C
    )
    w = distance_coefficient(dlogits, distance, rate, METRIC)
    return w, tl.where(inside, w * distance, 0.0), tl.where(inside, dlogits * farther, 0.0), whole


@triton.jit
def _project(dx, along, x, i, x_rows, d, D, x_scale, dtype: tl.constexpr):
    """The gradient of x from that of u = x / |x|, where rows are scaled: (du - <u, du> u) / |x|."""
    if x_scale is None:
        return dx
    else:
        return x_scale[:, None] * (dx - along[:, None] * load_rows(x, i, x_rows, d, D, x_scale, dtype))


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
    MARGIN: tl.constexpr,
    SMOOTHING: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dquery of BLOCK_Q queries, where one block holds all columns; returns their part in dtemperature."""
    Q, N, D = sizes[0], sizes[1], sizes[2]
    n = tl.arange(0, BLOCK_N).to(tl.int64)
    w, w_distance, scaled, _ = _block(
        sides, task, q, n, rate, softmax, distances, sizes, Q,
        dtype, METRIC, MARGIN, SMOOTHING, True, BLOCK_Q, BLOCK_N, BLOCK_D, BLOCK_C
    )  # fmt: skip
    if dquery is not None:
        x_scale = load_scale(sides[2], task * Q, q, Q)
        c_scale = load_scale(sides[3], task * N, n, N)
        along = tl.sum(w_distance, 1)
        for start in tl.range(0, D, BLOCK_D, num_stages=3):
            d = start + tl.arange(0, BLOCK_D)
            x = _own_rows(sides[0], q, Q, d, D, x_scale, dtype)
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
    MARGIN: tl.constexpr,
    SMOOTHING: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    OF_QUERY: tl.constexpr,
    OF_BIAS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradient [BLOCK_I, BLOCK_E] of rows i from the rows first <= j < last of the other side, and the part of rows i in
    dtemperature, if they are queries; or, of prototypes, the gradient of their bias."""
    BLOCK_I: tl.constexpr = BLOCK_Q if OF_QUERY else BLOCK_N
    BLOCK_J: tl.constexpr = BLOCK_N if OF_QUERY else BLOCK_Q
    own, other, own_scale, other_scale = sides if OF_QUERY else (sides[1], sides[0], sides[3], sides[2])
    x_rows, y_rows = (sizes[0], sizes[1]) if OF_QUERY else (sizes[1], sizes[0])
    d, D = e * BLOCK_E + tl.arange(0, BLOCK_E), sizes[2]
    x_scale = load_scale(own_scale, task * x_rows, i, x_rows)
    x = _own_rows(own, i, x_rows, d, D, x_scale, dtype)
    own_rows = tl.where(e == 0, sizes[0], 0) if OF_QUERY else 0  # of shares, by one program
    total = tl.zeros((BLOCK_I, BLOCK_J, BLOCK_E), dtype)
    along, scaled = tl.zeros((BLOCK_I,), dtype), tl.zeros((BLOCK_I,), dtype)
    for start in range(first, last, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J).to(tl.int64)
        q, n = (i, j) if OF_QUERY else (j, i)
        w, w_distance, z_distance, z = _block(
            sides, task, q, n, rate, softmax, distances, sizes, own_rows,
            dtype, METRIC, MARGIN, SMOOTHING, ONE_BLOCK, BLOCK_Q, BLOCK_N, BLOCK_D, BLOCK_C
        )  # fmt: skip
        along += tl.sum(w_distance, 1 if OF_QUERY else 0)
        if OF_QUERY:
            scaled += tl.sum(z_distance, 1)
        else:
            if OF_BIAS:
                scaled += tl.sum(z, 0)
            w = tl.trans(w)
        y_scale = load_scale(other_scale, task * y_rows, j, y_rows)
        total = _add_by_differences(total, w, x, other, j, y_rows, d, D, y_scale, dtype)
    return _project(tl.sum(total, 1), along, own, i, x_rows, d, D, x_scale, dtype), scaled


@triton.jit
def store_rows(out, dx, i, x_rows, d, D):
    tl.store(out + i[:, None] * D + d[None, :], dx.to(out.dtype.element_ty), (i[:, None] < x_rows) & (d[None, :] < D))

"""Blocks of distances between rows x_i and y_j, which the distance ops share: what a program computes in its registers.

Few columns, or little work: differences. [BLOCK_I, BLOCK_J, BLOCK_D] squares, summed over D once at the end: 2 instructions
per (i, j, d).
Otherwise |x - m|^2 + |y - m|^2 - 2 <x - m, y - m>, whose products torch has made (see _products.py). Pairs whose square comes
out below NEAR of the norms (or is not a number) lose digits there; they are done again by differences, one a row at a time, so
that coincident points are at exactly 0.
Moved: the rows of both sides once a block, or the products once, 16 bytes a thread where rows are so aligned. Cosine is
1 - cos = |u - v|^2 / 2 of unit vectors: the same blocks, of rows scaled as they are loaded.
"""

from __future__ import annotations

import triton
import triton.language as tl

INFINITY = tl.constexpr(float("inf"))


@triton.jit
def divide(x, y):
    """x / y, correctly rounded."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def root(x):
    return tl.sqrt(x) if x.dtype == tl.float64 else tl.sqrt_rn(x)


@triton.jit
def load_rate(tensor, value, dtype: tl.constexpr):
    """1 / temperature."""
    if tensor is not None:
        return divide(tl.full((), 1, dtype), tl.load(tensor).to(dtype))
    else:
        return divide(tl.full((), 1, dtype), tl.full((), value, dtype))


@triton.jit
def block_of_rows(index, rows, first_task, first_row, BLOCK_Q: tl.constexpr):
    """A program's task, its rows of the task, and their place among the rows of the launch: `rows` of each task."""
    q_blocks = tl.cdiv(rows, BLOCK_Q)
    task, i = (index // q_blocks).to(tl.int64), (index % q_blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q).to(tl.int64)
    return first_task + task, first_row + i, task * rows + i


@triton.jit
def load_rows(x, i, rows, d, D, scale, dtype: tl.constexpr):
    """x[i, d], times the scale of its row where there is one: [I], [E] -> [I, E]."""
    value = tl.load(x + i[:, None] * D + d[None, :], (i[:, None] < rows) & (d[None, :] < D), 0.0).to(dtype)
    return value if scale is None else value * scale[:, None]


@triton.jit
def load_scale(scale, at, i, rows):
    """None where there is none: Triton 3.6 knows neither `return None` nor a tuple of what such a function returns."""
    if scale is not None:
        return tl.load(scale + at + i, i < rows, 0.0)


@triton.jit
def row_scale(x, i, rows, D, dtype: tl.constexpr, METRIC: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_D: tl.constexpr):
    """1 / |x_i|, 0 for a zero vector, for the cosine; None for other metrics."""
    if METRIC == "cosine":
        square = tl.zeros((BLOCK_I, BLOCK_D), dtype)
        for start in tl.range(0, D, BLOCK_D, num_stages=3):
            value = load_rows(x, i, rows, start + tl.arange(0, BLOCK_D), D, None, dtype)
            square += value * value
        total = tl.sum(square, 1)
        one = tl.full((BLOCK_I,), 1, dtype)
        return tl.where(total != 0, divide(one, root(tl.where(total != 0, total, 1.0))), 0.0)


@triton.jit
def tf32_rounded(x):
    """x with the 10 bits of fraction that a tensor core takes, so that norms and products are of the same numbers."""
    bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)  # the sum of bits could hide a NaN


@triton.jit
def scale_of(
    x,
    scale,
    at,
    i,
    rows,
    D,
    products,
    dtype: tl.constexpr,
    METRIC: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`row_scale`, which those who have products have found before."""
    if products is None:
        return row_scale(x, i, rows, D, dtype, METRIC, BLOCK_I, BLOCK_D)
    else:
        return load_scale(scale, at, i, rows)


@triton.jit
def squares_by_differences(
    x,
    y,
    i,
    j,
    x_rows,
    y_rows,
    D,
    x_scale,
    y_scale,
    dtype: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """|x_i - y_j|^2, [BLOCK_I, BLOCK_J]."""
    square = tl.zeros((BLOCK_I, BLOCK_J, BLOCK_D), dtype)
    for start in tl.range(0, D, BLOCK_D, num_stages=3):
        d = (start + tl.arange(0, BLOCK_D))[None, None, :]
        b = tl.load(y + j[None, :, None] * D + d, (j[None, :, None] < y_rows) & (d < D), 0.0).to(dtype)
        a = tl.load(x + i[:, None, None] * D + d, (i[:, None, None] < x_rows) & (d < D), 0.0).to(dtype)
        if x_scale is not None:
            a *= x_scale[:, None, None]
            b *= y_scale[None, :, None]
        square += (a - b) * (a - b)
    return tl.sum(square, 2)


@triton.jit
def squares_of_products(
    x,
    y,
    i,
    j,
    x_rows,
    y_rows,
    D,
    x_scale,
    y_scale,
    given,
    dtype: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """|x_i - y_j|^2 and which pairs are near, [BLOCK_I, BLOCK_J]; `given`: the products of the centred rows, where the row of each
    i begins, the squares of these rows, columns up to a multiple of 16, the share of the norms from which on a pair is near."""
    products, at, x_square, y_square, WIDTH, near_share = given
    inside = (i[:, None] < x_rows) & (j[None, :] < WIDTH)
    product = tl.load(products + at[:, None] + j[None, :], inside, 0.0)
    own = tl.load(x_square + i, i < x_rows, 0.0)[:, None]
    others = tl.load(y_square + j, j < WIDTH, 0.0)[None, :]
    inside &= j[None, :] < y_rows
    square = tl.where(inside, own + (others - 2 * product), 0.0)  # far out x leaves one rounding of its size, not two
    near = inside & ((square >= near_share * (own + others)) == 0)
    left = near
    while tl.max(left.to(tl.int32)) > 0:
        chosen, picked = first_column(left, j, BLOCK_J)
        scale = None if y_scale is None else tl.sum(tl.where(chosen, y_scale[None, :], 0.0), 1)
        again = tl.zeros((BLOCK_I, BLOCK_D), dtype)
        for start in tl.range(0, D, BLOCK_D, num_stages=1):  # seldom run: without registers for loads ahead
            d = start + tl.arange(0, BLOCK_D)
            a = load_rows(x, i, x_rows, d, D, x_scale, dtype) - load_rows(y, picked, y_rows, d, D, scale, dtype)
            again += a * a
        square = tl.where(chosen, tl.sum(again, 1)[:, None], square)
        left = left & (chosen == 0)
    return square, near


@triton.jit
def first_column(left, j, BLOCK_J: tl.constexpr):
    """The first column marked in each row: where it is, [I, J], and its row of y, [I]."""
    column = tl.arange(0, BLOCK_J)[None, :]
    first = tl.min(tl.where(left, column, BLOCK_J), 1)  # [I], BLOCK_J where a row has none left
    return column == first[:, None], tl.min(j, 0) + tl.where(first < BLOCK_J, first, 0)


@triton.jit
def distance_block(
    x,
    y,
    i,
    j,
    x_rows,
    y_rows,
    D,
    x_scale,
    y_scale,
    given,
    dtype: tl.constexpr,
    METRIC: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Distances [BLOCK_I, BLOCK_J] of the rows i < x_rows of x to the rows j < y_rows of y, and which pairs are near."""
    if given[0] is None:
        square = squares_by_differences(
            x, y, i, j, x_rows, y_rows, D, x_scale, y_scale, dtype, BLOCK_I, BLOCK_J, BLOCK_D
        )
        near = square < 0
    else:
        square, near = squares_of_products(
            x, y, i, j, x_rows, y_rows, D, x_scale, y_scale, given, dtype, BLOCK_I, BLOCK_J, BLOCK_D
        )
    if METRIC == "euclidean":
        square = root(square)
    if METRIC == "cosine":  # 1 to a zero vector; an infinite one, whose scale is 0 too, has left NaN
        zero = ((x_scale[:, None] == 0) | (y_scale[None, :] == 0)) & (square == square)
        square = tl.where(zero, 1.0, 0.5 * square)
    return square, near


@triton.jit
def online_log_sum_exp(nearest, total, distance, rate):
    """Take distances [Q, N] (inf: no such prototype) into their running minimum [Q] and the total [Q] of
    exp(-rate (distance - minimum)). Subtracting before scaling keeps the digits of large distances."""
    new_nearest = tl.minimum(nearest, tl.min(distance, 1))
    shift = tl.where(new_nearest == INFINITY, 0.0, new_nearest)  # all so far inf: exp gives 0, not NaN
    total *= tl.exp((shift - nearest) * rate)
    return new_nearest, total + tl.sum(tl.exp((shift[:, None] - distance) * rate), 1)


@triton.jit
def accurate_log(x):
    """log in float64: the fast one is off by 2^-22 near 1, where a small loss lives."""
    return tl.log(x.to(tl.float64)).to(x.dtype)

"""The rows that torch multiplies for many columns, and the gradients of rows from its sums: the scheme is in _products.py.

Moved: rows read and written once before, and once after; the sums read once, twice for the cosine.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._distance import INFINITY, block_of_rows, load_rows, load_scale, row_scale, tf32_rounded


@triton.jit
def centre_of(mean, variance, d, D, dtype: tl.constexpr):
    """m [E], 0 where it is no number, or, given variances, where it is small: there the digits of halves stay as they are."""
    m = tl.load(mean + d, d < D, 0.0).to(dtype)
    m = tl.where(tl.abs(m) < INFINITY, m, 0.0)
    if variance is not None:
        m = tl.where(m * m > 16 * tl.load(variance + d, d < D, 0.0).to(dtype), m, 0.0)
    return m


@triton.jit(do_not_specialize=("stride", "rows"))
def scales_kernel(x, scale, stride, rows, D, dtype: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_D: tl.constexpr):
    """1 / |x_i| of each row."""
    task, i, place = block_of_rows(tl.program_id(0), rows, 0, 0, BLOCK_I)
    x += task * stride * D
    tl.store(scale + place, row_scale(x, i, rows, D, dtype, "cosine", BLOCK_I, BLOCK_D), i < rows)


@triton.jit(do_not_specialize=("stride", "rows", "out_rows"))
def operands_kernel(
    x,
    scale,
    mean,
    variance,
    out,
    squares,
    stride,
    rows,
    out_rows,
    D,
    ONES,
    dtype: tl.constexpr,
    TF32: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """x s - m as torch multiplies it, in rows of ONES + 8 numbers: D of its own, zeros, a 1 at ONES; and the squares of rows."""
    task, i, place = block_of_rows(tl.program_id(0), out_rows, 0, 0, BLOCK_I)
    x += task * stride * D
    mean += task * D
    if variance is not None:
        variance += task * D
    x_scale = load_scale(scale, task * rows, i, rows)
    out += place[:, None] * (ONES + 8)
    total = tl.zeros((BLOCK_I,), dtype)
    for start in tl.range(0, ONES + 8, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        value = load_rows(x, i, rows, d, D, x_scale, dtype) - centre_of(mean, variance, d, D, dtype)[None, :]
        if TF32:
            value = tf32_rounded(value)
        value = tl.where((i[:, None] < rows) & (d[None, :] < D), value, 0.0).to(out.dtype.element_ty)
        total += tl.sum(value.to(dtype) * value.to(dtype), 1)
        one = (d[None, :] == ONES) & (i[:, None] < rows)
        tl.store(
            out + d[None, :],
            tl.where(one, 1.0, value.to(dtype)).to(out.dtype.element_ty),
            (i[:, None] < out_rows) & (d[None, :] < ONES + 8),
        )
    tl.store(squares + place, total, i < out_rows)


@triton.jit
def _gradient(x, mean, variance, sums, number, factor, i, rows, d, D, x_scale, dtype: tl.constexpr):
    """(sum_j w_ij) (x_i - m) less the sums, and x_i, [I, E]."""
    own = load_rows(x, i, rows, d, D, x_scale, dtype)
    inside = (i[:, None] < rows) & (d[None, :] < D)
    dx = number[:, None] * (own - centre_of(mean, variance, d, D, dtype)[None, :])
    dx -= tl.load(sums + d[None, :], inside, 0.0)
    if factor is not None:
        dx /= tl.load(factor)
    return dx, own


@triton.jit(do_not_specialize=("stride", "rows", "sum_rows"))
def gradient_kernel(
    x,
    scale,
    mean,
    variance,
    sums,
    factor,
    out,
    stride,
    rows,
    sum_rows,
    D,
    ONES,
    dtype: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradient of rows from the sums; where rows are scaled from that of u = x / |x|: (du - <u, du> u) / |x|."""
    task, i, place = block_of_rows(tl.program_id(0), rows, 0, 0, BLOCK_I)
    x += task * stride * D
    mean += task * D
    if variance is not None:
        variance += task * D
    sums += (task * sum_rows + i[:, None]) * (ONES + 8)
    number = tl.sum(tl.load(sums + ONES + tl.arange(0, 1)[None, :], i[:, None] < rows, 0.0), 1)
    x_scale = load_scale(scale, task * rows, i, rows)
    if scale is not None:
        along = tl.zeros((BLOCK_I,), dtype)
        for start in tl.range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            dx, own = _gradient(x, mean, variance, sums, number, factor, i, rows, d, D, x_scale, dtype)
            along += tl.sum(dx * own, 1)
    for start in tl.range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        dx, own = _gradient(x, mean, variance, sums, number, factor, i, rows, d, D, x_scale, dtype)
        if scale is not None:
            dx = x_scale[:, None] * (dx - along[:, None] * own)
        at = place[:, None] * D + d[None, :]
        tl.store(out + at, dx.to(out.dtype.element_ty), (i[:, None] < rows) & (d[None, :] < D))

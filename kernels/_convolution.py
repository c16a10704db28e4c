"""y = W x convolved, each task with weights of its own, and its gradients: implicit matrix products, no patch in memory.

Values and data gradient, one kernel: a program owns BLOCK_E channels by BLOCK_M pixels of a task's images and runs over k = (channel, tap)
of the source, BLOCK_K at a time: weights [E, K] (16 bytes a thread where K allows it) by source [K, M], lanes along the pixels. For
the data gradient the source is dy; with a stride, a program owns pixels of one phase (row and column modulo the stride), which
meet the same taps, so that no product is with a 0.
A loop divides by nothing but constants, the sizes of a kernel, which costs a product: else channel and tap, image and pixel are carried
from step to step.
Weight gradient: a program owns BLOCK_E by BLOCK_K of a task's weights and runs over the pixels of all its images. Where there are
few such, several share the pixels, and torch adds their parts in order.
Pixels are told to be neighbours by twos, though not all are: lanes go along them, where Triton 3.6 else takes a block's first
dimension. Loads grow no wider by it, as that wants their alignment too, of which where neighbours end nothing is known.
Moved: every source element once for each E / BLOCK_E, 9 times (a 3 x 3 kernel) from cache; weights once for each pixel block, from
cache; the result once. Backward's derivative is four of these products again: `task_conv2d_bwd2`.
"""

from __future__ import annotations

import triton
import triton.language as tl

AWAY = tl.constexpr(1 << 29)  # a coordinate outside of every image


@triton.jit
def split(i, middle, last):
    """i of [.., middle, last] as (first, middle, last)."""
    rest = i // last
    return rest // middle, rest % middle, i % last


@triton.jit
def advance(a, b, c, step_a, step_b, step_c, middle, last):
    """(a, b, c) of [.., middle, last] a step further: where a loop would divide, two comparisons."""
    c += step_c
    over = (c >= last).to(tl.int32)
    c -= over * last
    b += step_b + over
    over = (b >= middle).to(tl.int32)
    return a + step_a + over, b - over * middle, c


@triton.jit
def _taps_before(first, size, STRIDE: tl.constexpr):
    """How many of `size` taps the phases before `first` meet."""
    return first * (size // STRIDE) + tl.minimum(first, size % STRIDE)


@triton.jit(
    do_not_specialize=(
        "source_task",
        "source_image",
        "out_task",
        "out_image",
        "weight_stride",
        "bias_stride",
        "images",
        "E",
        "H",
        "W",
        "padding",
        "m_blocks",
    )
)
def convolution_kernel(
    source,
    weight,
    bias,
    out,
    source_task,
    source_image,
    out_task,
    out_image,
    weight_stride,
    bias_stride,
    images,
    C,
    E,
    H,
    W,
    OH,
    OW,
    padding,
    m_blocks,
    dtype: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BACKWARD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    e_blocks = tl.cdiv(E, BLOCK_E)
    e = (tl.program_id(0) % e_blocks) * BLOCK_E + tl.arange(0, BLOCK_E)
    program = tl.program_id(0) // e_blocks
    m = (program % m_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    program //= m_blocks
    PHASED: tl.constexpr = BACKWARD and STRIDE > 1
    if PHASED:  # pixels a, a + STRIDE, ... take the taps first, first + STRIDE, ...
        a, b = (program // STRIDE) % STRIDE, program % STRIDE
        program //= STRIDE * STRIDE
        first_r, first_s = (a + padding) % STRIDE, (b + padding) % STRIDE
        taps_r, taps_s = tl.cdiv(KH - first_r, STRIDE), tl.cdiv(KW - first_s, STRIDE)
        rows, columns = tl.cdiv(OH - a, STRIDE), tl.cdiv(OW - b, STRIDE)
        # weights of the phases one after the other, taps of each together
        weight += E * C * (_taps_before(first_r, KH, STRIDE) * KW + taps_r * _taps_before(first_s, KW, STRIDE))
    else:
        taps_r, taps_s = KH, KW
        rows, columns = OH, OW
    task = program.to(tl.int64)
    pixels = rows * columns
    inside = m < images * pixels
    if PHASED:  # none where the stride is longer than the image
        pixels, columns = tl.maximum(pixels, 1), tl.maximum(columns, 1)
    image, pixel = (m // pixels).to(tl.int64), m % pixels
    u, v = pixel // columns, pixel % columns
    if PHASED:
        h0, w0 = u + (a + padding) // STRIDE, v + (b + padding) // STRIDE
        pixel = (u * STRIDE + a) * OW + v * STRIDE + b
    elif BACKWARD:
        h0, w0 = u + padding, v + padding
    else:
        h0, w0 = u * STRIDE - padding, v * STRIDE - padding
    source += tl.max_contiguous((task * source_task + image * source_image) * H * W + h0 * W + w0, 2)  # [M]
    weight += task * weight_stride * (C * KH * KW)
    h0 = tl.where(inside, h0, AWAY)
    K = C * taps_r * taps_s
    SIGN: tl.constexpr = -1 if BACKWARD else 1
    if PHASED:
        taps_r, taps_s = tl.maximum(taps_r, 1), tl.maximum(taps_s, 1)  # some phases meet no tap
        c, r, s = split(tl.arange(0, BLOCK_K), taps_r, taps_s)
        step_c, step_r, step_s = split(tl.full((), BLOCK_K, tl.int32), taps_r, taps_s)
    total = tl.zeros((BLOCK_E, BLOCK_M), dtype)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K)
        if not PHASED:
            c, r, s = split(k, KH, KW)
        at = (e * K)[:, None] + k[None, :]
        w = tl.load(weight + at, (e[:, None] < E) & (k[None, :] < K), 0.0).to(OPERAND)  # [E, K]
        h, column = h0[None, :] + tl.where(k < K, SIGN * r, 2 * AWAY)[:, None], w0[None, :] + SIGN * s[:, None]
        x_inside = (h >= 0) & (h < H) & (column >= 0) & (column < W)
        place = c * (H * W) + SIGN * (r * W + s)
        x = tl.load(source[None, :] + place[:, None], x_inside, 0.0).to(OPERAND)  # [K, M]
        total = tl.dot(w, x, total, input_precision=PRECISION, out_dtype=dtype)
        if PHASED:
            c, r, s = advance(c, r, s, step_c, step_r, step_s, taps_r, taps_s)
    if bias is not None:
        total += tl.load(bias + task * bias_stride + e, e < E, 0.0).to(dtype)[:, None]
    own = tl.max_contiguous((task * out_task + image * out_image) * OH * OW + pixel, 2)
    out += own[None, :] + (e * (OH * OW))[:, None]
    tl.store(out, total.to(out.dtype.element_ty), (e[:, None] < E) & inside[None, :])


@triton.jit(
    do_not_specialize=(
        "x_task", "x_image", "dy_task", "dy_image", "T", "images", "E", "H", "W", "OH", "OW", "groups", "padding", "share",
    )
)  # fmt: skip
def weight_gradient_kernel(
    x,
    dy,
    dweight,
    x_task,
    x_image,
    dy_task,
    dy_image,
    T,
    images,
    C,
    E,
    H,
    W,
    OH,
    OW,
    groups,
    padding,
    share,
    dtype: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STRIDE: tl.constexpr,
    TOGETHER: tl.constexpr,
    CROSSED: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    K, OP = C * KH * KW, groups * TOGETHER
    k_blocks, e_blocks = tl.cdiv(K, BLOCK_K), tl.cdiv(E, BLOCK_E)
    k = (tl.program_id(0) % k_blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    program = tl.program_id(0) // k_blocks
    e = (program % e_blocks) * BLOCK_E + tl.arange(0, BLOCK_E)
    program //= e_blocks
    task, part = (program % T).to(tl.int64), program // T
    c, r, s = k // (KH * KW), k // KW % KH - padding, k % KW - padding
    x += (task * x_task + c) * H * W + r * W + s  # [K]
    r = tl.where(k < K, r, AWAY)
    dy += task * dy_task * OP
    begin = part * (share * BLOCK_M)
    end = tl.minimum(begin + share * BLOCK_M, images * OP)
    image, u, v = split(begin + tl.arange(0, BLOCK_M), OH, OW)
    step_image, step_u, step_v = split(tl.full((), BLOCK_M, tl.int32), OH, OW)
    total = tl.zeros((BLOCK_E, BLOCK_K), dtype)
    for start in tl.range(begin, end, BLOCK_M, num_stages=STAGES):
        m = start + tl.arange(0, BLOCK_M)
        begun = image
        if CROSSED <= 4:  # so the compiler sees which pixels are neighbours
            begun = tl.full((BLOCK_M,), start // OP, tl.int32)
            for i in tl.static_range(CROSSED):
                begun += (m >= (start // OP + i + 1) * OP).to(tl.int32)
        h0, w0 = u * STRIDE, v * STRIDE
        h, w = r[:, None] + tl.where(m < end, h0, AWAY)[None, :], s[:, None] + w0[None, :]
        place = tl.max_contiguous(begun.to(tl.int64) * x_image * H * W + h0 * W + w0, 2)
        value = tl.load(x[:, None] + place[None, :], (h >= 0) & (h < H) & (w >= 0) & (w < W), 0.0).to(OPERAND)  # [K, M]
        at = (e * OP)[:, None] + (m + begun.to(tl.int64) * ((dy_image - 1) * OP))[None, :]
        cotangent = tl.load(dy + at, (e[:, None] < E) & (m[None, :] < end), 0.0)  # [E, M]
        total = tl.dot(cotangent.to(OPERAND), tl.trans(value), total, input_precision=PRECISION, out_dtype=dtype)
        image, u, v = advance(image, u, v, step_image, step_u, step_v, OH, OW)
    out = dweight + (part * T + task) * E * K + e[:, None] * K + k[None, :]
    tl.store(out, total.to(dweight.dtype.element_ty), (e[:, None] < E) & (k[None, :] < K))

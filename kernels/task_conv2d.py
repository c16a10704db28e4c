"""Each task's convolution and its derivatives, by the two kernels of _convolution.py.

With C convolution of images with weights, C* its adjoint and D the weight gradient, bilinear all three:
y = C(x, W) + b; dx = C*(dy, W), dW = D(x, dy), db = sum dy; and for cotangents x', W', b' of these three,
to dy: C(x', W) + C(x, W') + b'; to x: C*(dy, W'); to W: D(x', dy).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmeta._precision import allows_tf32

from ._convolution import convolution_kernel, weight_gradient_kernel
from ._launch import accumulator, dense, launch, power_of_two, task_rows, triton_dtype

PROGRAMS = 512  # that keep a GPU busy: four a multiprocessor of an H100, not measured (2026-11-26)
TRITON = {getattr(torch, name): getattr(tl, name) for name in ("float16", "bfloat16", "float32", "float64")}


def _options(like: Tensor, rows: int, columns: int, depth: int) -> dict[str, Any]:
    """Blocks of products [rows, depth] by [depth, columns], how they are multiplied, and sums kept."""
    float32 = like.dtype == torch.float32
    on_tensor_cores = not float32 or allows_tf32("conv")
    widest = 64 if like.element_size() <= 4 else 32
    # Triton's interpreter would multiply the bits of bfloat16
    wide = like.dtype == torch.bfloat16 and triton.knobs.runtime.interpret
    return {
        "BLOCK_ROWS": power_of_two(rows, 16, widest),
        "BLOCK_COLUMNS": power_of_two(columns, 16, widest),
        "BLOCK_DEPTH": power_of_two(depth, 16, 32 if on_tensor_cores else 16),
        "STAGES": 3 if on_tensor_cores else 2,
        "PRECISION": "tf32" if float32 and on_tensor_cores else "ieee",
        "OPERAND": tl.float32 if wide else TRITON[like.dtype],
        "dtype": triton_dtype(like),
        "num_warps": 4 if on_tensor_cores else 8,
    }


def planes(x: Tensor) -> tuple[Tensor, int, int]:
    """`x` as [T, n, C, H, W], and how many planes [H, W] its tasks and its images are apart, each with its channels one after the
    other: as torch.vmap leaves them, [n, T C, H, W], nothing is copied. 0 for what all tasks share."""
    x = x if x.ndim == 5 else x.unsqueeze(0)
    *sizes, height, width = x.shape
    plane = max(height * width, 1)
    steps, wanted = x.stride(), (plane, width, 1)
    together = all(n == 1 or step == one for n, step, one in zip(x.shape[2:], steps[2:], wanted, strict=True))
    if not together or any(step % plane for step in steps[:2]):
        x = x.contiguous()
    task, image = (0 if size == 1 else step // plane for size, step in zip(sizes[:2], x.stride()[:2], strict=True))
    return x, task, image


def empty_like_images(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Of this shape [T?, n, ...]; images first in memory where those of `like` [T, n, ...] are."""
    images_first = like.ndim == len(shape) == 5 and like.shape[0] > 1 and 0 < like.stride(0) < like.stride(1)
    if not images_first or like.shape[1] == 1:
        return like.new_empty(shape)
    tasks, images, *rest = shape
    return like.new_empty(images, tasks, *rest).transpose(0, 1)


def _by_phases(weight: Tensor, stride: int) -> Tensor:
    """Weights [T?, O, I, kh, kw] with the taps of each phase of a stride together, phase after phase, in as much memory: a program meets
    one phase, and its weights then lie side by side."""
    if stride == 1:
        return weight
    phases = [weight[..., a::stride, b::stride] for a in range(stride) for b in range(stride)]
    return torch.cat([phase.flatten(-4) for phase in phases], -1).view(weight.shape)


def _convolution(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    stride: int,
    padding: int,
    backward: bool = False,
) -> Tensor:
    """Into `out` [T, n, O, H', W'] the convolution of source [T, n, C, H, W] with weight [T, O, C, kh, kw], or, `backward`, its
    adjoint: weight [T, C, O, kh, kw]. Source, weight and bias of one task serve all."""
    source, source_task, source_image = planes(source)
    out, out_task, out_image = planes(out)
    tasks, images, channels, height, width = out.shape
    phase = stride if backward else 1
    weight = dense(_by_phases(weight.transpose(-4, -3), phase) if backward else weight, 4)
    bias = None if bias is None else dense(bias, 1)
    pixels = images * triton.cdiv(height, phase) * triton.cdiv(width, phase)
    options = _options(source, channels, pixels, source.shape[2] * weight.shape[3] * weight.shape[4])
    blocks = [options.pop(f"BLOCK_{name}") for name in ("ROWS", "COLUMNS", "DEPTH")]
    m_blocks = triton.cdiv(pixels, blocks[1])
    launch(
        convolution_kernel,
        tasks * phase * phase * m_blocks * triton.cdiv(channels, blocks[0]),
        source,
        source=source,
        weight=weight,
        bias=bias,
        out=out,
        source_task=source_task,
        source_image=source_image,
        out_task=out_task,
        out_image=out_image,
        weight_stride=task_rows(weight),
        bias_stride=0 if bias is None else task_rows(bias),
        images=images,
        C=source.shape[2],
        E=channels,
        H=source.shape[3],
        W=source.shape[4],
        OH=height,
        OW=width,
        padding=padding,
        m_blocks=m_blocks,
        BACKWARD=backward,
        KH=weight.shape[3],
        KW=weight.shape[4],
        STRIDE=stride,
        **dict(zip(("BLOCK_E", "BLOCK_M", "BLOCK_K"), blocks, strict=True)),
        **options,
    )
    return out


def _weight_gradient(x: Tensor, dy: Tensor, like: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient to weights like [T?, O, I, kh, kw] of the convolution of x [T?, n, I, H, W] from dy [T?, n, O, H', W']."""
    summed = like.ndim < dy.ndim
    x, x_task, x_image = planes(x)
    dy, dy_task, dy_image = planes(dy)
    tasks, images = dy.shape[:2]
    outputs, channels, *kernel = like.shape[-4:]
    depth, pixels = channels * kernel[0] * kernel[1], dy.shape[3] * dy.shape[4]
    options = _options(x, outputs, depth, images * pixels)
    blocks = [options.pop(f"BLOCK_{name}") for name in ("ROWS", "DEPTH", "COLUMNS")]
    each = tasks * triton.cdiv(outputs, blocks[0]) * triton.cdiv(depth, blocks[2])
    together = math.gcd(pixels, 16)  # as many of dy lie next to each other, where a block of pixels begins
    shares = triton.cdiv(images * pixels, 8 * blocks[1])
    splits = max(min(shares, PROGRAMS // max(each, 1)), 1)
    whole = splits == 1 and not summed
    parts = x.new_empty(splits, tasks, *like.shape[-4:], dtype=x.dtype if whole else accumulator(x))
    launch(
        weight_gradient_kernel,
        splits * each,
        x,
        x=x,
        dy=dy,
        dweight=parts,
        x_task=x_task,
        x_image=x_image,
        dy_task=dy_task,
        dy_image=dy_image,
        T=tasks,
        images=images,
        C=channels,
        E=outputs,
        H=x.shape[3],
        W=x.shape[4],
        OH=dy.shape[3],
        OW=dy.shape[4],
        groups=pixels // together,
        TOGETHER=together,
        CROSSED=triton.cdiv(blocks[1] - 1, max(pixels, 1)),  # images that begin within a block, at most
        padding=padding,
        share=triton.cdiv(triton.cdiv(images * pixels, splits), blocks[1]),
        KH=kernel[0],
        KW=kernel[1],
        STRIDE=stride,
        **dict(zip(("BLOCK_E", "BLOCK_M", "BLOCK_K"), blocks, strict=True)),
        **options,
    )
    found = parts if whole else parts.sum((0, 1) if summed else 0)
    return found.reshape(like.shape).to(x.dtype)


def _data_gradient(dy: Tensor, weight: Tensor, like: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient to images like [T?, n, I, H, W] from dy [T?, n, O, H', W']; summed over the tasks that share them."""
    found = empty_like_images(dy, (*dy.shape[:-4], *like.shape[-4:]))
    _convolution(dy, weight, None, found, stride, padding, backward=True)
    return found.sum(0) if like.ndim < found.ndim else found


def _bias_gradient(dy: Tensor, bias: Tensor) -> Tensor:
    """[T?, O], summed over the tasks that share it."""
    return dy.sum((-4, -2, -1) if bias.ndim == dy.ndim - 3 else (0, 1, 3, 4))


def task_conv2d_limit(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> str | None:
    images, channels, height, width = x.shape[-4:]
    padded = (height + 2 * padding) * (width + 2 * padding)
    largest = max(max(images, channels, weight.shape[-4]) * padded, weight.shape[-4:].numel())
    if largest < 1 << 28:
        return None
    return "a plane of all images, all planes of an image and the weights of a task must hold fewer than 2^28 numbers"


def task_conv2d_fwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, needs: tuple[bool, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    leads = (x.shape[:-4], weight.shape[:-4], () if bias is None else bias.shape[:-1])
    sizes = ((n + 2 * padding - k) // stride + 1 for n, k in zip(x.shape[-2:], weight.shape[-2:], strict=True))
    y = empty_like_images(x, (*max(leads, key=len), x.shape[-4], weight.shape[-4], *sizes))
    _convolution(x, weight, bias, y, stride, padding)
    return (y,), ()


def task_conv2d_bwd(
    cotangents: tuple[Tensor, ...],
    saved: tuple[Tensor, ...],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    needs: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    (dy,) = cotangents
    found = []
    if needs[0]:
        found.append(_data_gradient(dy, weight, x, stride, padding))
    if needs[1]:
        found.append(_weight_gradient(x, dy, weight, stride, padding))
    if bias is not None and needs[2]:
        found.append(_bias_gradient(dy, bias))
    return tuple(found)


def task_conv2d_bwd2(
    cotangents: tuple[Tensor, ...],
    dys: tuple[Tensor, ...],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    wanted: tuple[bool, ...],
    needs: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    """The gradients to dy, x, weight and bias that are needed, from cotangents of those gradients that were wanted."""
    (dy,), given = dys, iter(cotangents)
    to_dx, to_dweight, to_dbias = (next(given) if want else None for want in wanted[:3])
    found = []
    if needs[0]:
        found.append(_to_cotangent(to_dx, to_dweight, to_dbias, dy, x, weight, stride, padding))
    if needs[1]:
        found.append(torch.zeros_like(x) if to_dweight is None else _data_gradient(dy, to_dweight, x, stride, padding))
    if needs[2]:
        if to_dx is None:
            found.append(torch.zeros_like(weight))
        else:
            found.append(_weight_gradient(to_dx, dy, weight, stride, padding))
    if bias is not None and needs[3]:
        found.append(torch.zeros_like(bias))
    return tuple(found)


def _to_cotangent(
    to_dx: Tensor | None,
    to_dweight: Tensor | None,
    to_dbias: Tensor | None,
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
) -> Tensor:
    """C(x', W) + C(x, W') + b', the tangent of y."""
    total, bias = None, to_dbias
    for images, weights in ((to_dx, weight), (x, to_dweight)):
        if images is not None and weights is not None:
            part = empty_like_images(dy, dy.shape)
            _convolution(images, weights, bias, part, stride, padding)
            total, bias = part if total is None else total + part, None
    if total is None:
        assert bias is not None
        total = bias.unsqueeze(-2)[..., None, None].expand(dy.shape).clone()
    return total

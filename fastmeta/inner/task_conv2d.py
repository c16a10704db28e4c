from __future__ import annotations

from torch import Tensor

from .. import _check
from .._route import call

CORES = (4, 4, 1)
MOST_PIXELS = 4096  # of a stride or a padding


def task_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0) -> Tensor:
    r"""y[n, o, u, v] = b_o + sum_{i, r, s} W[o, i, r, s] x[n, i, u stride + r - padding, v stride + s - padding]: `conv2d` with
    weights of its own for each task, x being 0 outside the image.

    Shapes: x `[..., n, I, H, W]`, weight `[..., O, I, kh, kw]`, bias `[..., O]` or None -> `[..., n, O, H', W']`,
    H' = (H + 2 padding - kh) // stride + 1, W' likewise. Each has the batch dimensions of the tasks, or lacks them and is then
    shared by all tasks. n and O may be 0.

    Differentiable in x, weight and bias, to any order. dtypes: float32, float64, float16 and bfloat16, in and out; sums in
    float32 or better; float32 under autocast. On CUDA, float32 is multiplied in TF32 where cuDNN's convolutions may be, which is
    torch's default (`torch.backends.cudnn.conv.fp32_precision`). The same call gives the same bits.

    Errors: TypeError for a wrong dtype or what is not a tensor; ValueError for wrong shapes, devices and values.

    Kernels: Triton (CUDA), second derivatives too. Source: batched weights as in Finn et al. 2017, arXiv:1703.03400.

    ```python
    import torch
    import fastmeta

    x = torch.randn(8, 25, 1, 28, 28)  # 8 tasks, 25 images each
    weight = torch.randn(8, 32, 1, 3, 3)
    y = fastmeta.task_conv2d(x, weight, padding=1)  # [8, 25, 32, 28, 28]
    ```
    """
    op = "task_conv2d"
    tensors = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    _check.floating(op, **tensors)
    for name, rank in (("x", 4), ("weight", 4), ("bias", 1)):
        if name in tensors:
            _check.at_least(op, rank, **{name: tensors[name]})
    lead = _check.leads(op, {"x": 4, "weight": 4, "bias": 1}, **tensors)
    stride = _check.integer(op, "stride", stride, 1, MOST_PIXELS)
    padding = _check.integer(op, "padding", padding, 0, MOST_PIXELS)
    _check_sizes(op, x, weight, bias, padding)
    args = [
        None if t is None else _check.fold(t, lead, rank, shared=True)
        for t, rank in zip((x, weight, bias), CORES, strict=True)
    ]
    (out,) = call(op, args, (stride, padding), CORES)
    return _check.unfold(out, lead)


def _check_sizes(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> None:
    if x.shape[-3] != weight.shape[-3] or x.shape[-3] == 0:
        raise ValueError(
            f"{op}: x and weight must have the same number of input channels, at least one, got shapes {_check.shape(x)} and "
            f"{_check.shape(weight)}"
        )
    if bias is not None and bias.shape[-1] != weight.shape[-4]:
        raise ValueError(
            f"{op}: bias must have a number for each of the {weight.shape[-4]} output channels, got shape {_check.shape(bias)}"
        )
    if 0 in weight.shape[-2:] or any(n + 2 * padding < k for n, k in zip(x.shape[-2:], weight.shape[-2:], strict=True)):
        raise ValueError(
            f"{op}: the kernel must hold a pixel and fit into the image with its padding {padding}, got shapes "
            f"{_check.shape(weight)} and {_check.shape(x)}"
        )

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def task_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """[T?, n, I, H, W], [T?, O, I, kh, kw], [T?, O] -> [T?, n, O, H', W']: one convolution, the channels of all tasks side by side."""
    if weight.numel() == 0:
        return _empty(x, weight, stride, padding)
    joins = bias is not None and bias.ndim == weight.ndim - 3  # as many of both
    kernels, biases = weight.flatten(0, -4), bias.flatten() if bias is not None and joins else None
    if weight.ndim == 4:
        y: Tensor = F.conv2d(x.flatten(0, -4), kernels, biases, stride, padding).unflatten(0, x.shape[:-3])
    else:
        tasks = weight.shape[0]
        images, groups = (x, 1) if x.ndim == 4 else (x.transpose(0, 1).flatten(1, 2), tasks)
        y = F.conv2d(images, kernels, biases, stride, padding, groups=groups).unflatten(1, (tasks, -1)).transpose(0, 1)
    if bias is not None and not joins:
        y = y + bias.unsqueeze(-2).unsqueeze(-1).unsqueeze(-1)
    return y


def _empty(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Of no task, or no output, which torch's convolution refuses."""
    outputs = x.flatten(-3).sum(-1, keepdim=True) + weight.flatten(-3).sum(-1).unsqueeze(-2)  # [T?, n, O]
    sides = zip(x.shape[-2:], weight.shape[-2:], strict=True)
    return outputs[..., None, None].expand(*outputs.shape, *((n + 2 * padding - k) // stride + 1 for n, k in sides))

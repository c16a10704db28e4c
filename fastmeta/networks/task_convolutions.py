"""Convolutions with weights of each task, under torch.vmap: torch makes a grouped convolution of them, which is slow on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .._autograd import is_autocast
from .._dispatch import forced
from .._torch import is_of_vmap
from ..inner.task_conv2d import task_conv2d


def task_convolutions(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Inside, torch.vmap over tasks sends `F.conv2d` to the op `task_conv2d` where that has kernels: on CUDA."""
    ours = forced() == "triton" or (like.is_cuda and forced() == "auto")
    return TaskConvolutions() if ours else contextlib.nullcontext()


class TaskConvolutions(TorchFunctionMode):
    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_conv2d if func is F.conv2d else func)(*args, **(kwargs or {}))


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    step, border = _both(stride), _border(padding, weight)
    of_tasks = is_of_vmap(weight) and input.ndim == 4
    if not of_tasks or step is None or border is None or _both(dilation) != 1 or groups != 1:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    device = input.device.type
    if not is_autocast(device):
        return task_conv2d(input, weight, bias, stride=step, padding=border)
    dtype = torch.get_autocast_dtype(device)  # torch's convolutions are in it, the op would be in float32
    lowered = (x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in (input, weight, bias))
    with torch.autocast(device, enabled=False):
        return task_conv2d(*lowered, stride=step, padding=border)  # type: ignore[arg-type]


def _both(value: Any) -> int | None:
    """The number that serves height and width, if one does."""
    values = {value} if isinstance(value, int) else set(value)
    return int(values.pop()) if len(values) == 1 else None


def _border(padding: Any, weight: Tensor) -> int | None:
    """The same on all four sides, if it is."""
    if padding == "valid":
        return 0
    if padding == "same":  # which has a stride of 1
        size = _both(weight.shape[-2:])
        return size // 2 if size is not None and size % 2 else None
    return _both(padding)

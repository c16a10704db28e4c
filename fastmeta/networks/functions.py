"""The functions of torch that `Program` takes, and the layers that some of them are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


def _relu(x: Any, inplace: bool = False) -> nn.Module:
    return nn.ReLU(inplace)


def _leaky_relu(x: Any, negative_slope: float = 0.01, inplace: bool = False) -> nn.Module:
    return nn.LeakyReLU(negative_slope, inplace)


def _max_pool2d(
    x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.Module:  # fmt: skip
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


def _adaptive_avg_pool2d(x: Any, output_size: Any) -> nn.Module:
    return nn.AdaptiveAvgPool2d(output_size)


def _dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
    return nn.Dropout(p, inplace).train(training)


def _gelu(x: Any, *, approximate: str = "none") -> nn.Module:
    return nn.GELU(approximate)


def _flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> nn.Module:
    return nn.Flatten(start_dim, end_dim)


def _tanh(x: Any) -> nn.Module:
    return nn.Tanh()


def _silu(x: Any, inplace: bool = False) -> nn.Module:
    return nn.SiLU(inplace)


def _sine(x: Any) -> nn.Module:
    return Sine()


def _log_softmax(x: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> nn.Module | None:
    return nn.LogSoftmax(dim) if dtype is None else None


def _sigmoid(x: Any) -> nn.Module:
    return nn.Sigmoid()


LAYER_OF: dict[Any, Callable[..., nn.Module | None]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), _relu),
    **dict.fromkeys((torch.tanh, Tensor.tanh), _tanh),
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid), _sigmoid),
    **dict.fromkeys((torch.sin, Tensor.sin), _sine),
    **dict.fromkeys((torch.flatten, Tensor.flatten), _flatten),
    **dict.fromkeys((F.log_softmax, torch.log_softmax, Tensor.log_softmax), _log_softmax),
    F.tanh: _tanh, F.sigmoid: _sigmoid, F.gelu: _gelu, F.silu: _silu, F.leaky_relu: _leaky_relu, F.max_pool2d: _max_pool2d,
    F.dropout: _dropout, F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
}  # fmt: skip
ADDS = (torch.add, Tensor.add, Tensor.add_)
RESHAPES = (Tensor.view, Tensor.reshape, torch.reshape)
IN_PLACE = (torch.relu_, Tensor.relu_, Tensor.add_)  # and where an option says so
# Pure, and of their first argument.
OTHERS = (
    *ADDS, *RESHAPES, Tensor.size, F.adaptive_max_pool2d, F.avg_pool2d, F.normalize, F.softmax,
    torch.mean, Tensor.mean, torch.squeeze, Tensor.squeeze, torch.softmax, Tensor.softmax,
)  # fmt: skip
FUNCTIONS = {*LAYER_OF, *OTHERS}
METHODS = {
    name: getattr(Tensor, name)
    for name in (
        "relu", "relu_", "tanh", "sigmoid", "sin", "flatten", "add", "add_", "view", "reshape", "mean", "squeeze", "softmax", "log_softmax",
    )
}  # fmt: skip

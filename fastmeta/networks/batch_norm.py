"""Norms whose derivatives of every order are right, and the helper that gives a model the statistics of each batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._dispatch import LOW_PRECISION
from .._torch import AnyNorm

Model = TypeVar("Model", bound=nn.Module)


def use_batch_statistics(model: Model) -> Model:
    """Turn every norm of `model` with running statistics into one that uses those of each batch, in place; returns `model`.

    MAML and its relatives need this: running statistics would be averages over tasks and inner steps. Weights and biases stay.
    """
    for module in model.modules():
        if isinstance(module, AnyNorm) and has_running_statistics(module):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


def has_running_statistics(norm: AnyNorm) -> bool:
    return norm.track_running_stats or norm.running_mean is not None or norm.running_var is not None


def track(buffers: Mapping[str, Tensor | None], momentum: float | None, mean: Tensor, var: Tensor) -> None:
    """What batch norm does to its running statistics on a batch of this mean and unbiased variance."""
    share, batches = momentum or 0.0, buffers["num_batches_tracked"]
    if batches is not None:
        batches.add_(1)
        share = 1 / float(batches) if momentum is None else share
    for name, of_batch in (("running_mean", mean), ("running_var", var)):
        running = buffers[name]
        if running is not None:
            running.data.lerp_(of_batch, share)  # no version counts it, nor does one torch's


def refuse_running_statistics(name: str, model: nn.Module) -> None:
    """ValueError where batch norm would average its statistics over tasks and steps."""
    for path, module in model.named_modules():
        if isinstance(module, AnyNorm) and has_running_statistics(module):
            raise ValueError(
                f"{name}: batch norm must use the statistics of each batch, got running statistics in {path!r}: build it with "
                "track_running_stats=False, or call fastmeta.use_batch_statistics(model)"
            )


class ExactNorms(TorchFunctionMode):
    """Inside, batch, instance and layer norm are made of elementary functions. Of torch's own the third derivatives are wrong,
    with no error, and under torch.vmap the second of batch and instance norm (the gradient of the weight's gradient with
    respect to the input)."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return EXACT.get(func, func)(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    others = [0, *range(2, x.ndim)]
    if not training or running_mean is not None or x.numel() == x.shape[1]:  # torch says what is wrong with one value
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    return _normalised(x, others, *_of_channels(x, weight, bias), eps)


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    others = list(range(2, x.ndim))
    if not use_input_stats or running_mean is not None or x.numel() == x.shape[0] * x.shape[1]:
        return F.instance_norm(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return _normalised(x, others, *_of_channels(x, weight, bias), eps)


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if tuple(x.shape[x.ndim - len(normalized_shape) :]) != tuple(normalized_shape):  # torch says what is wrong
        return F.layer_norm(x, normalized_shape, weight, bias, eps)
    return _normalised(x, list(range(-len(normalized_shape), 0)), weight, bias, eps)


def _of_channels(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """[C] both -> as wide as x [n, C, ...]."""
    shape = (-1, *[1] * (x.ndim - 2))
    return None if weight is None else weight.reshape(shape), None if bias is None else bias.reshape(shape)


def _normalised(x: Tensor, over: list[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Mean 0 and variance 1 over the axes `over`, times weight, plus bias."""
    wide = x.float() if x.dtype in LOW_PRECISION else x
    var, mean = torch.var_mean(wide, over, correction=0, keepdim=True)
    scale = torch.rsqrt(var + eps)
    out = (wide - mean) * (scale if weight is None else scale * weight)
    return (out if bias is None else out + bias).to(x.dtype)


EXACT: dict[Callable[..., Any], Callable[..., Any]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
}

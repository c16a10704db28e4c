"""The functions of torch that take recorded tensors and give recorded ones."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .gradients import gradients
from .heads import Scores
from .losses import Loss
from .parameters import gradients_to_clone
from .recorded import HANDLERS, Outputs, realised
from .scalars import Scalar, Stack


def _stack(tensors: Any, dim: int = 0, **options: Any) -> Any:
    items = list(tensors)
    if dim or options or not torch.is_grad_enabled() or not all(issubclass(type(x), Scalar) for x in items):
        return NotImplemented
    return Stack.of(items) if all(x.dtype is items[0].dtype for x in items) else NotImplemented


def _added(a: Any, b: Any, *rest: Any, **options: Any) -> Any:
    if rest or options or not torch.is_grad_enabled():
        return NotImplemented
    recorded, other = (a, b) if issubclass(type(a), Scalar) else (b, a)
    return recorded._sum(other) if issubclass(type(recorded), Scalar) else NotImplemented


def _mse(
    x: Any, y: Any, size_average: Any = None, reduce: Any = None, reduction: str = "mean", weight: Any = None
) -> Any:
    if size_average is not None or reduce is not None or reduction != "mean" or weight is not None:
        return NotImplemented
    right = _takes(x, y) and y.shape == x.shape and y.dtype is x.dtype
    return Loss.made(x, y, "mse") if right and x.origin.start.known.takes("mse") else NotImplemented


def _cross_entropy(
    x: Any, y: Any, weight: Any = None, size_average: Any = None, ignore_index: int = -100, reduce: Any = None,
    reduction: str = "mean", label_smoothing: float = 0.0,
) -> Any:  # fmt: skip
    plain = weight is None and size_average is None and reduce is None and reduction == "mean" and not label_smoothing
    return _of_classes(x, y, "cross_entropy", plain and ignore_index == -100)


def _nll(
    x: Any, y: Any, weight: Any = None, size_average: Any = None, ignore_index: int = -100, reduce: Any = None,
    reduction: str = "mean",
) -> Any:  # fmt: skip
    plain = weight is None and size_average is None and reduce is None and reduction == "mean"
    return _of_classes(x, y, "nll_loss", plain and ignore_index == -100)


def _of_classes(x: Any, y: Any, kind: str, plain: bool) -> Any:
    if type(x) is Scores:
        right = plain and kind == "cross_entropy" and type(y) is Tensor and y.is_cpu and y.dtype is torch.int64
        return x.cross_entropy(y) if right and y.shape == x.shape[:1] and torch.is_grad_enabled() else NotImplemented
    right = plain and _takes(x, y) and len(x.shape) == 2 and y.dtype is torch.int64 and y.shape == x.shape[:1]
    return Loss.made(x, y, kind) if right and x.origin.start.known.takes(kind) else NotImplemented


def _takes(x: Any, y: Any) -> bool:
    plain = type(x) is Outputs and x.kept is None and type(y) is Tensor and y.is_cpu and not y.is_inference()
    return plain and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def _backward(tensors: Any, grad_tensors: Any = None, *args: Any, **options: Any) -> Any:
    of = tensors[0] if type(tensors) in (tuple, list) and len(tensors) == 1 else tensors
    if not issubclass(type(of), Scalar) or grad_tensors is not None or args or any(options.values()):
        return NotImplemented
    return of.backward()


def _grad(
    outputs: Any, inputs: Any, grad_outputs: Any = None, retain_graph: Any = None, create_graph: bool = False,
    allow_unused: Any = None, only_inputs: bool = True, is_grads_batched: bool = False, materialize_grads: bool = False,
) -> Any:  # fmt: skip
    of = outputs[0] if type(outputs) in (tuple, list) and len(outputs) == 1 else outputs
    options = grad_outputs is not None or is_grads_batched
    found = None if options else gradients_to_clone(of, inputs, create_graph)
    if found is not None:
        return found
    to = realised((inputs,) if isinstance(inputs, Tensor) else tuple(inputs))
    options = options or retain_graph or create_graph
    if not issubclass(type(of), Scalar) or of.kept is not None or not of.requires_grad or options:
        return NotImplemented
    return gradients(of, to, bool(allow_unused or (allow_unused is None and materialize_grads)), materialize_grads)


def _whole(x: Any, *args: Any, **options: Any) -> Any:
    """The sum or the mean of one number; a clone."""
    plain = issubclass(type(x), Scalar) and not args and not options and x.kept is None and x.requires_grad
    return x * 1.0 if plain and torch.is_grad_enabled() else NotImplemented


HANDLERS.update(
    {
        F.mse_loss: _mse, F.cross_entropy: _cross_entropy, F.nll_loss: _nll, torch.stack: _stack, torch.add: _added, Tensor.add: _added,
        Tensor.__add__: _added, Tensor.__radd__: _added,
        torch.autograd.grad: _grad, torch.autograd.backward: _backward,
        torch.sum: lambda x, *args, **kwargs: (x.sum if type(x) is Stack else partial(_whole, x))(*args, **kwargs),
        torch.mean: lambda x, *args, **kwargs: (x.mean if type(x) is Stack else partial(_whole, x))(*args, **kwargs),
        **dict.fromkeys((torch.clone, Tensor.clone, Tensor.sum, Tensor.mean), _whole),
    }
)  # fmt: skip

"""Checks of what users pass in: `<op>: <what must hold>, got <what came>`. Run once, by the public function, before any backend."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._autograd import is_autocast
from ._torch import NO_DISPATCH, is_looked_at

INFINITY = float("inf")
MOST_CLASSES = 2**31 - 1
FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def shape(x: Tensor) -> list[int]:
    return list(x.shape)


def dense(op: str, name: str, x: Any) -> None:
    """TypeError unless `x` is a tensor whose elements lie in strides."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    if x.layout is not torch.strided or x.is_nested:
        kind = "a nested one" if x.is_nested else x.layout
        raise TypeError(f"{op}: {name} must be a dense tensor, got {kind}")


def floating(op: str, **tensors: Any) -> None:
    """TypeError unless all are tensors with one floating dtype (mixed precisions are right under autocast) and one device."""
    first_name, first = next(iter(tensors.items()))
    for name, x in tensors.items():
        dense(op, name, x)
        if x.dtype not in FLOATING:
            raise TypeError(f"{op}: {name} must be float32, float64, float16 or bfloat16, got {x.dtype}")
        if x.device != first.device:
            raise ValueError(f"{op}: {name} must be on the device of {first_name}, {first.device}, got {x.device}")
        if x.dtype != first.dtype and not is_autocast(x.device.type):
            raise TypeError(f"{op}: {name} must have the dtype of {first_name}, {first.dtype}, got {x.dtype}")


def at_least(op: str, rank: int, **tensors: Tensor) -> None:
    for name, x in tensors.items():
        if x.ndim < rank:
            raise ValueError(f"{op}: {name} must have at least {rank} dimensions, got shape {shape(x)}")


def one_of(op: str, name: str, value: Any, allowed: Sequence[str]) -> Any:
    """One of these words, as a plain str."""
    if type(value) is str and value in allowed:
        return value
    if isinstance(value, str) and value in allowed:
        return str(value)
    raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, allowed))}, got {brief(value)}")


def integer(op: str, name: str, value: Any, least: int, most: int) -> int:
    """An integer of Python, NumPy or a tensor, as an int; neither a bool nor a float, however whole."""
    if type(value) is int and least <= value <= most:
        return value
    try:
        if isinstance(value, bool | np.bool_) or getattr(value, "dtype", None) is torch.bool:
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an integer, got {type(value).__name__}") from None
    if found < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {brief(found)}")
    if found > most:
        raise ValueError(f"{op}: {name} must be at most {most}, got {brief(found)}")
    return found


def flag(op: str, name: str, value: Any) -> bool:
    """True or False, of Python or NumPy; 1 or 0."""
    if value is True or value is False:
        return value
    if isinstance(value, np.bool_) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{op}: {name} must be True or False, got {type(value).__name__}")


def number(op: str, name: str, value: Any) -> float:
    """A real number of Python or NumPy as a float; no bool."""
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_real:
        raise TypeError(f"{op}: {name} must be a number or a tensor, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        return INFINITY if value > 0 else -INFINITY


def brief(value: Any) -> str:
    """The value as it is written, but for what nobody reads to its end."""
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 100 else type(value).__name__


def scalar(op: str, name: str, value: Any) -> Any:
    """A number as a float, a tensor with one element as a 0-dim tensor; another tensor as it is."""
    if type(value) is float:
        return value
    if isinstance(value, Tensor):
        return value.reshape(()) if value.ndim and value.numel() == 1 else value
    return number(op, name, value)


def positive(op: str, name: str, value: float | Tensor, like: Tensor) -> None:
    """ValueError unless the number, or the one element of the tensor, is positive and finite."""
    if isinstance(value, Tensor):
        floating(op, like=like, **{name: value})
        if value.ndim:
            raise ValueError(f"{op}: {name} must have one element, got shape {shape(value)}")
        if not visible(value):
            return
        value = value.item()
    if not 0 < value < INFINITY:
        raise ValueError(f"{op}: {name} must be positive and finite, got {value}")


def rate(op: str, name: str, value: Any) -> float | Tensor:
    """A learning rate, of any sign: a number, as a float, or a tensor. ValueError where it, or an element of it, is NaN or
    infinite; the elements are looked at where `visible`."""
    if type(value) is float and -INFINITY < value < INFINITY:
        return value
    if isinstance(value, Tensor):
        floating(op, **{name: value})
        if visible(value) and not bool((finite := value.isfinite()).all()):
            raise ValueError(f"{op}: {name} must be finite, got {value.detach()[~finite][0].item()}")
        return value
    found = number(op, name, value)
    if not abs(found) < INFINITY:
        raise ValueError(f"{op}: {name} must be finite, got {found}")
    return found


def labels(op: str, name: str, x: Any, expected: Sequence[int], device: torch.device) -> None:
    """int64 class indices of the expected shape; see `label_range` for their values."""
    dense(op, name, x)
    if x.dtype != torch.int64:
        raise TypeError(f"{op}: {name} must be int64 class indices, got {x.dtype}")
    if list(x.shape) != list(expected):
        raise ValueError(f"{op}: {name} must have shape {list(expected)}, got {shape(x)}")
    if x.device != device:
        raise ValueError(f"{op}: {name} must be on the device of the other tensors, {device}, got {x.device}")


def label_range(op: str, name: str, x: Tensor, num_classes: int, ignore_index: int | None = None) -> None:
    """`refuse_label_out_of_range` where the labels may be looked at."""
    if visible(x):
        refuse_label_out_of_range(op, name, x, num_classes, ignore_index)


def every_class(op: str, x: Tensor, num_classes: int) -> None:
    """`refuse_empty_class` where the labels `x` [..., S] may be looked at; else the number of classes alone can tell."""
    examples = x.shape[-1]
    if visible(x):
        refuse_empty_class(op, x, num_classes)
    elif num_classes > examples and 0 not in x.shape[:-1]:
        raise ValueError(
            f"{op}: every class must have a support example, got {num_classes} classes and {examples} examples"
        )


def visible(x: Tensor) -> bool:
    """Whether the values may be looked at: a CUDA tensor would have to wait for the device, so there the kernels answer with
    NaN."""
    return not is_looked_at() and x.is_cpu and type(x).__torch_dispatch__ is NO_DISPATCH


def refuse_label_out_of_range(op: str, name: str, x: Tensor, num_classes: int, ignore_index: int | None = None) -> None:
    """ValueError where a label of a CPU tensor is outside [0, num_classes) and not ignore_index."""
    wrong = label_out_of_range(x, num_classes, ignore_index) if x.is_cpu else None
    if wrong is not None:
        also = "" if ignore_index is None else f" or ignore_index={ignore_index}"
        raise ValueError(f"{op}: {name} must be in [0, {num_classes}){also}, got {wrong}")


def refuse_empty_class(op: str, x: Tensor, num_classes: int) -> None:
    """ValueError where a class has no example in `x` [..., S], the labels of CPU tensors."""
    most = min(num_classes, x.shape[-1] + 1)  # of more classes than examples one is empty
    empty = _empty_class(x, most) if x.is_cpu else None
    if empty is not None:
        raise ValueError(
            f"{op}: every class must have a support example, got none of class {empty[1]} in task {empty[0]}"
        )


def _label_out_of_range_in_torch(x: Tensor, num_classes: int, ignore_index: int | None) -> int | None:
    bad = (x < 0) | (x >= num_classes)
    if ignore_index is not None:
        bad &= x != ignore_index
    return int(x[bad][0]) if bool(bad.any()) else None


def _empty_class_in_torch(x: Tensor, num_classes: int) -> tuple[int, int] | None:
    seen = (x.unsqueeze(-1) == torch.arange(num_classes)).any(-2)
    empty = (~seen.reshape(-1, num_classes)).nonzero()
    return (int(empty[0, 0]), int(empty[0, 1])) if len(empty) else None


try:
    from ._ext import empty_class as _empty_class
    from ._ext import label_out_of_range as label_out_of_range  # which knows torch.Tensor
except ImportError:  # no extension: the same searches in PyTorch
    label_out_of_range, _empty_class = _label_out_of_range_in_torch, _empty_class_in_torch


def leads(op: str, ranks: dict[str, int], **tensors: Tensor) -> list[int]:
    """The leading batch dimensions, which all tensors must share or lack; `ranks` are those of one task."""
    longest: list[int] = []
    owner = ""
    for name, x in tensors.items():
        lead = list(x.shape[: x.ndim - ranks[name]])
        if len(lead) > len(longest):
            longest, owner = lead, name
    for name, x in tensors.items():
        if x.ndim > ranks[name] and list(x.shape[: x.ndim - ranks[name]]) != longest:
            raise ValueError(
                f"{op}: {name} must have the batch dimensions of {owner}, {longest}, or none, got shape {shape(x)}"
            )
    return longest


def fold(x: Tensor, lead: Sequence[int], rank: int, shared: bool = False) -> Tensor:
    """`x` with its batch dimensions as one task axis (none where `lead` is empty); `shared` leaves a tensor without them so."""
    if x.ndim == rank and (shared or not lead):
        return x
    if x.ndim == rank:
        x = x.expand(*lead, *x.shape)
    return x if len(lead) == 1 else x.flatten(0, len(lead) - 1)


def unfold(y: Tensor, lead: Sequence[int]) -> Tensor:
    """The inverse of `fold` for an output."""
    return y if len(lead) <= 1 else y.unflatten(0, list(lead))

"""What the integrations' names ask of their arguments."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def instance(op: str, name: str, value: Any, kind: type, words: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{op}: {name} must be {words}, got {type(value).__name__}")


def module(op: str, name: str, value: Any) -> None:
    instance(op, name, value, nn.Module, "a torch.nn.Module")


def tensor(op: str, name: str, value: Any) -> None:
    instance(op, name, value, Tensor, "a tensor")


def mapping(op: str, name: str, value: Any) -> None:
    if not isinstance(value, nn.ParameterDict):  # which is no Mapping
        instance(op, name, value, Mapping, "a dict")


def optimiser(op: str, name: str, value: Any) -> None:
    instance(op, name, value, torch.optim.Optimizer, "a torch.optim.Optimizer")


def flag(op: str, name: str, value: Any) -> None:
    instance(op, name, value, bool, "True or False")


def number(op: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor | numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a number or a tensor, got {type(value).__name__}")


def scalar(op: str, name: str, value: Any) -> None:
    """A number or a tensor with one element, not negative."""
    number(op, name, value)
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{op}: {name} must have one element, got shape {list(value.shape)}")
    if not bool(value >= 0):
        raise ValueError(f"{op}: {name} must not be negative, got {value}")


def like_params(op: str, name: str, given: Any, params: Sequence[Tensor], tensors: bool = True) -> list[Any]:
    """`given` as a list: one entry for each parameter, None or, if `tensors`, a tensor of its shape."""
    found = listed(op, name, given)
    if len(found) != len(params):
        raise ValueError(f"{op}: {name} must have one entry for each of the {len(params)} parameters, got {len(found)}")
    for i, (p, entry) in enumerate(zip(params, found, strict=True)):
        if tensors and entry is not None:
            tensor(op, f"{name}[{i}]", entry)
            if entry.shape != p.shape:
                came = f"{list(entry.shape)} for {list(p.shape)}"
                raise ValueError(f"{op}: {name}[{i}] must have the shape of its parameter, got {came}")
    return found


def listed(op: str, name: str, given: Any) -> list[Any]:
    try:
        return list(given)
    except TypeError:
        raise TypeError(f"{op}: {name} must be a sequence, got {type(given).__name__}") from None

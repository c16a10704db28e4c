"""The checks that learners make of what they are built from and called with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .. import _check
from ..distance.proto_log_softmax import METRICS


def whole(learner: str, name: str, value: Any, least: int, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        kind = "None or a whole number" if optional else "a whole number"
        raise ValueError(f"{learner}: {name} must be {kind}, {least} or more, got {came(value)}")


def number(learner: str, name: str, value: Any, *, positive: bool = False) -> float:
    """A finite number; a tensor with one element counts as one."""
    if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point():
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{learner}: {name} must be a number, got {came(value)}")
    if not math.isfinite(value) or (positive and value <= 0):
        raise ValueError(f"{learner}: {name} must be {'positive and ' if positive else ''}finite, got {value}")
    return float(value)


def learning_rate(learner: str, value: Any) -> None:
    """A finite number, or a floating tensor, 0-dim or 1-dim."""
    if isinstance(value, Tensor):
        _check.floating(learner, lr=value)
        if value.ndim > 1:
            raise ValueError(f"{learner}: lr must have shape [] or [steps], got {list(value.shape)}")
    _check.rate(learner, "lr", value)


def temperature(learner: str, value: Any) -> None:
    """A positive number, or a floating tensor with one element."""
    if not isinstance(value, Tensor):
        number(learner, "temperature", value, positive=True)
    elif value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"{learner}: temperature must be a floating tensor with one element, got {value.dtype} of shape {list(value.shape)}"
        )


def module(learner: str, name: str, value: Any, optional: bool = False) -> None:
    if not (isinstance(value, nn.Module) or (optional and value is None)):
        kind = "None or a torch.nn.Module" if optional else "a torch.nn.Module"
        raise TypeError(f"{learner}: {name} must be {kind}, got {came(value)}")


def flag(learner: str, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{learner}: {name} must be True or False, got {came(value)}")


def word(learner: str, name: str, value: Any, allowed: Sequence[str], also: str = "") -> None:
    """One of `allowed`, or `also`, which the caller has looked for."""
    if not isinstance(value, str) or value not in allowed:
        *first, last = [*map(repr, allowed), *([also] if also else [])]
        raise ValueError(f"{learner}: {name} must be {', '.join(first)} or {last}, got {came(value)}")


def metric(learner: str, value: Any) -> None:
    if not isinstance(value, str) or value not in METRICS:
        raise ValueError(f"{learner}: metric must be one of {', '.join(map(repr, METRICS))}, got {came(value)}")


def names(learner: str, name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, list | tuple | set) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{learner}: {name} must be a sequence of names of parameters or modules, got {came(value)}")


def features(learner: str, name: str, found: Any, examples: int) -> None:
    """What a network gives for a batch of examples: a tensor with as many rows."""
    if not isinstance(found, Tensor):
        raise TypeError(f"{learner}: {name} must return a tensor, got {came(found)}")
    if not found.ndim or found.shape[0] != examples:
        raise ValueError(
            f"{learner}: {name} must return a row for each of {examples} examples, got {list(found.shape)}"
        )


def came(value: Any) -> str:
    """A short value as it is, anything else by its type."""
    return repr(value) if isinstance(value, str | bool | int | float) or value is None else type(value).__name__

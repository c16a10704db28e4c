"""Checks that the data sources share: `<op>: <what must hold>, got <what came>`. Each gives back what it checked, in one type."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch

MOST = 2**40  # of any count, and of the numbers in a batch: more fit into no memory


def whole(op: str, name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """An int in least .. most; numpy's whole numbers are ints too, a bool is none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}")
    found = int(value)
    if least is not None and found < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {said(found)}")
    if most is not None and found > most:
        raise ValueError(f"{op}: {name} must be at most {most}, got {said(found)}")
    return found


def said(number: int) -> str:
    """In words where it has too many digits to read, or for Python to print."""
    return str(number) if number.bit_length() <= 128 else f"a number of {number.bit_length()} bits"


def positive(op: str, **counts: Any) -> list[int]:
    """Every count is an int of at least 1."""
    return [whole(op, name, value, 1, MOST) for name, value in counts.items()]


def room(op: str, name: str, numbers: int) -> None:
    """`numbers`: how many a batch of the count `name` would hold."""
    if numbers > MOST:
        raise ValueError(f"{op}: {name} must give at most {MOST} numbers, got {said(numbers)}")


def flag(op: str, name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {type(value).__name__}")
    return value


def interval(op: str, name: str, value: Any) -> tuple[float, float]:
    """(low, high), finite, low <= high."""
    found = list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    if len(found) != 2 or not all(isinstance(x, Real) and not isinstance(x, bool) for x in found):
        raise TypeError(f"{op}: {name} must be two numbers, (low, high), got {type(value).__name__}")
    try:
        low, high = map(float, found)
    except OverflowError:
        low = high = math.inf
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"{op}: {name} must be finite with low <= high, got {low}, {high}")
    return low, high


def path(op: str, name: str, value: Any) -> Path:
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise TypeError(f"{op}: {name} must be a path, got {type(value).__name__}")
    if "\0" in os.fspath(value):
        raise ValueError(f"{op}: {name} must be a path without null characters, got {value!r}")
    return Path(value)


def names(op: str, name: str, value: Any) -> list[str]:
    found: list[Any] = list(value) if isinstance(value, Iterable) else [value]
    if isinstance(value, str) or not all(isinstance(each, str) for each in found):
        raise TypeError(f"{op}: {name} must be a sequence of names, got {type(value).__name__}")
    return found


def listed(op: str, name: str, value: Any) -> list[str]:
    """Names, or those in a text file, one a line."""
    if not isinstance(value, str | os.PathLike):
        return names(op, name, value)
    file = path(op, name, value)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{op}: {name} must be a text file, got {file}") from error
    return [line.strip() for line in lines if line.strip()]


def once(op: str, name: str, found: list[Any]) -> None:
    different = len({*found})
    if not found or different < len(found):
        raise ValueError(f"{op}: {name} must name at least one, each once, got {len(found)} with {different} different")


def device(op: str, value: Any) -> torch.device:
    """A device that tensors can be on here."""
    if not isinstance(value, str | int | torch.device) or isinstance(value, bool):
        raise TypeError(f"{op}: device must be a torch.device or the name of one, got {type(value).__name__}")
    try:
        found = torch.device(value)
        torch.empty(0, device=found)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(f"{op}: device must be one that is here, got {value!r}") from error
    return found

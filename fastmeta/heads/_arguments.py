"""The checks that heads make of what they are built from and called with; the ops check the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import _check
from .._ask import ask

Found = TypeVar("Found")


def positive(head: str, name: str, value: Any) -> float:
    found = finite(head, name, value)
    if not found > 0:
        raise ValueError(f"{head}: {name} must be positive and finite, got {found}")
    return found


def finite(head: str, name: str, value: Any) -> float:
    found = _check.number(head, name, value)
    if not abs(found) < _check.INFINITY:
        raise ValueError(f"{head}: {name} must be finite, got {found}")
    return found


def whole(head: str, name: str, value: Any) -> int:
    return _check.integer(head, name, value, 1, _check.MOST_CLASSES)


def matrix(head: str, rank: int = 2, **tensors: Any) -> None:
    """Floating tensors of `rank` dimensions."""
    _check.floating(head, **tensors)
    for name, x in tensors.items():
        if x.ndim != rank:
            raise ValueError(f"{head}: {name} must have {rank} dimensions, got shape {_check.shape(x)}")


def pairs(head: str, **tensors: Any) -> None:
    """Two matrices of one shape, of which row i of one belongs to row i of the other."""
    matrix(head, **tensors)
    (first, x), (second, y) = tensors.items()
    if x.shape != y.shape:
        raise ValueError(f"{head}: {second} must have the shape of {first}, {_check.shape(x)}, got {_check.shape(y)}")


def labelled(head: str, embeddings: Any, labels: Any) -> None:
    matrix(head, embeddings=embeddings)
    _check.labels(head, "labels", labels, embeddings.shape[:1], embeddings.device)


def utterances(head: str, x: Any) -> None:
    """[speakers, utterances, D], two utterances or more."""
    matrix(head, 3, embeddings=x)
    if x.shape[1] < 2:
        raise ValueError(f"{head}: embeddings must hold two utterances of each speaker, got shape {_check.shape(x)}")


def of(head: str, op: Callable[..., Found], *args: Any, **options: Any) -> Found:
    """op(*args, **options), whose errors name the head and its arguments."""
    return ask(head, op, {"query": "embeddings", "targets": "labels"}, *args, **options)


def numbered(x: Tensor) -> Tensor:
    """0, 1, ... for the rows of x."""
    return torch.arange(x.shape[0], device=x.device)

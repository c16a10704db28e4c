"""What the integrations' names ask of their arguments, and what they say of names that are not here."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn


def module(op: str, name: str, value: Any) -> None:
    if not isinstance(value, nn.Module):
        raise TypeError(f"{op}: {name} must be a torch.nn.Module, got {type(value).__name__}")


def tensor(op: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")


def number(op: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor | numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a number or a tensor, got {type(value).__name__}")


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


def missing(library: str, offered: Sequence[str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module that stands in for one of `library`."""

    def no_such_name(name: str) -> Any:
        here = ", ".join(offered)
        raise AttributeError(f"{library}: the name must be one that fastmeta.integrations has ({here}), got {name}")

    return no_such_name

"""The arguments of an op, lists among them, as one flat tuple, and back."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

Layout = tuple[int | None, ...]  # of an op's arguments: the length of a list, None for one item


@functools.lru_cache(maxsize=64)
def has_lists(cores: tuple[Any, ...]) -> bool:
    """Whether an op takes lists, by its `cores` (see `_route.call`)."""
    return any(isinstance(core, tuple) for core in cores)


def flatten(args: Sequence[Any]) -> tuple[tuple[Any, ...], Layout]:
    flat: list[Any] = []
    layout: list[int | None] = []
    for a in args:
        if isinstance(a, list | tuple):
            flat += a
            layout.append(len(a))
        else:
            flat.append(a)
            layout.append(None)
    return tuple(flat), tuple(layout)


def unflatten(flat: Sequence[Any], layout: Layout) -> list[Any]:
    """`flat` as the op's arguments: a list where `layout` has a length, one item where it has None."""
    args: list[Any] = []
    i = 0
    for length in layout:
        args.append(flat[i] if length is None else list(flat[i : i + length]))
        i += 1 if length is None else length
    return args


def tensors_of(tree: Any) -> tuple[Tensor, ...]:
    """The tensors in nested tuples and lists, in order; None is left out."""
    if isinstance(tree, Tensor):
        return (tree,)
    found: list[Tensor] = []
    for item in tree or ():
        if isinstance(item, Tensor):
            found.append(item)
        elif item is not None:
            found += tensors_of(item)
    return tuple(found)

"""A module as known layers: a graph of them, or a chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .functions import ADDS, RESHAPES
from .program import Program, Step, has_rows, place_of, values_in
from .stand_ins import Value
from .users_model import FORWARD

INPUT = -1
DROPS = (nn.Dropout, nn.Dropout2d)


class Rows(nn.Module):
    """x.view(-1, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


class Pixels(nn.Module):
    """x.mean((2, 3))."""


class Images(nn.Module):
    """x.view(-1, *shape)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape


class Node(NamedTuple):
    layer: nn.Module | None  # a known one; None: an addition, or something else
    adds: bool
    inputs: tuple[int, ...]


class Graph:
    """The steps of a program that compute tensors, by their places, but for those that change nothing, such as dropout in eval mode."""

    def __init__(self, program: Program, nothing: tuple[type, ...] = ()) -> None:
        """`nothing`: layers that change nothing, beside dropout where it is off."""
        self.steps, self.reads, self.end = program.steps, program.reads, program.end
        self.same: dict[int, int] = {INPUT: INPUT}  # of each tensor: the node that gives it
        self.nodes: dict[int, Node] = {}
        self.users: dict[int, list[int]] = {INPUT: []}
        for place, step in enumerate(self.steps):
            if step.call is Tensor.size:
                continue
            of_step = map(place_of, values_in((step.args, step.kwargs)))
            inputs = tuple(self.same[x] for x in of_step if x < 0 or self.steps[x].call is not Tensor.size)
            layer = self._known(step)
            if len(inputs) == 1 and (type(layer) in nothing or self._is_off(layer)):
                self.same[place] = inputs[0]
                continue
            self.same[place], self.users[place] = place, []
            self.nodes[place] = Node(layer, step.call in ADDS, inputs)
            for x in inputs:
                self.users[x].append(place)
        self.end = None if self.end is None else self.same.get(self.end)
        if any(not users and place != self.end for place, users in self.users.items()):
            self.end = None  # what is computed for nothing may leave a trace

    def run(self, place: int) -> list[tuple[int, Any]]:
        """`place` and what follows, as far as each has one input and one user and is a known layer, with the layers."""
        found: list[tuple[int, Any]] = []
        while True:
            node = self.nodes[place]
            if len(node.inputs) != 1 or node.layer is None:
                return found
            found.append((place, node.layer))
            if len(self.users[place]) != 1:
                return found
            (place,) = self.users[place]

    def chain(self) -> list[Any] | None:
        """The layers, where the whole is one after the other."""
        if self.end is None or len(self.users[INPUT]) != 1:
            return None
        found = self.run(self.users[INPUT][0])
        return [layer for _, layer in found] if len(found) == len(self.nodes) and found[-1][0] == self.end else None

    def _is_off(self, layer: nn.Module | None) -> bool:
        if layer is None or type(layer) not in DROPS:
            return False
        own = layer.__dict__
        self.reads.append((own.get, "p", own["p"]))
        if own["p"] != 0:
            self.reads.append((own.get, "training", own["training"]))
        return own["p"] == 0 or not own["training"]

    def _known(self, step: Step) -> nn.Module | None:
        if step.call in RESHAPES:
            return _reshape(step, self.steps)
        if step.call in (Tensor.mean, torch.mean):
            return _mean(*step.args, **step.kwargs)
        return step.layer if step.layer is not None and _is_known(step.layer) else None


def _is_known(layer: nn.Module) -> bool:
    kind = type(layer)
    return kind in FORWARD and kind.forward is FORWARD[kind]


def _reshape(step: Step, steps: Sequence[Step]) -> nn.Module | None:
    """Flatten of what is [n, ...], by its number of rows; Rows; Images."""
    sizes = step.args[1:]
    sizes = tuple(sizes[0]) if len(sizes) == 1 and type(sizes[0]) in (tuple, list) else sizes
    if len(sizes) == 4 and not step.kwargs and all(type(size) is int for size in sizes):
        return Images(sizes[1:]) if sizes[0] == -1 and min(sizes[1:]) > 0 and has_rows(step.args[0]) else None
    if step.kwargs or len(sizes) != 2:
        return None
    first, last = sizes
    if type(first) is Value and type(last) is int and last == -1:
        both = has_rows(step.args[0]) and is_rows(first, steps)
        return nn.Flatten() if both or _is_size_of(first, step.args[0], steps) else None
    plain = type(first) is int and type(last) is int and first == -1 and last > 0
    return Rows(last) if plain and has_rows(step.args[0]) else None


def _mean(x: Value, dim: Any = None, *rest: Any, **options: Any) -> nn.Module | None:
    of_pixels = type(dim) in (tuple, list) and all(type(d) is int for d in dim) and sorted(dim) in ([2, 3], [-2, -1])
    return Pixels() if of_pixels and not rest and not options else None


def is_rows(number: Value, steps: Sequence[Step]) -> bool:
    """Whether it is the number of examples."""
    step = steps[place_of(number)]
    return step.call is Tensor.size and step.args[1:] == (0,) and has_rows(step.args[0])


def _is_size_of(number: Value, x: Value, steps: Sequence[Step]) -> bool:
    step = steps[place_of(number)]
    return step.call is Tensor.size and step.args[1:] == (0,) and place_of(step.args[0]) == place_of(x)


def is_whole(flatten: nn.Flatten) -> bool:
    return (flatten.start_dim, flatten.end_dim) == (1, -1)


def flat_layers(model: nn.Module) -> list[Any]:
    if type(model) is nn.Sequential:
        return [m for child in model for m in flat_layers(child)]
    return [model]

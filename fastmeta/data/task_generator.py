"""Random numbers of numbered tasks: task i draws the same whoever draws it, with whatever others, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _check

LAST = 2**63 - 1 - _check.MOST  # of the numbers of a batch's first task: those of the others fit into int64

# SplitMix64's increment and the factors of its mixing, as int64
_INCREMENT, *_FACTORS = (k - 2**64 for k in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class TaskGenerator:
    """In place of a torch.Generator: `count` tasks, the numbers first .. first + count - 1 of an endless sequence.

    Task i has its own SplitMix64, which starts from output i of another one that `seed` starts. What a task draws depends on
    (seed, i) and on what it drew before, not on first, count or the device.

    Errors: TypeError where seed, first or count is no int; ValueError for first below 0 or above 2**63 - 2**40 - 1, and for count below 1
    or above 2**40.

    Source: Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195.
    """

    def __init__(self, seed: int, first: int, count: int) -> None:
        op = "TaskGenerator"
        self.seed, self.first = _check.whole(op, "seed", seed), _check.whole(op, "first", first, 0, LAST)
        (self.count,) = _check.positive(op, count=count)
        self._drawn = 0  # numbers of each task

    def _numbers(self, device: torch.device) -> Tensor:
        """Of the tasks, [count]."""
        return torch.arange(self.first, self.first + self.count, device=device)

    def rand(self, *shape: int, device: torch.device | str | None = None) -> Tensor:
        """Uniform in [0, 1), float64, multiples of 2**-53, [count, ...]; ValueError for another first size."""
        op = "TaskGenerator"
        shape = tuple(_check.whole(op, "shape", size, 0, _check.MOST) for size in shape)
        if not shape or shape[0] != self.count:
            raise ValueError(f"{op}: shape must start with the {self.count} tasks, got {list(shape)}")
        where = torch.get_default_device() if device is None else _check.device(op, device)
        each = 1
        for size in shape[1:]:
            each *= size
        _check.room(op, "shape", self.count * each)
        tasks = self._numbers(where)
        places = torch.arange(self._drawn, self._drawn + each, device=where)
        self._drawn += each
        states = _output(_output(torch.tensor(_signed(self.seed), device=where), 0), tasks)
        bits = _output(states[:, None], places)  # [count, each]
        return (_shifted(bits, 11).to(torch.float64) / 2**53).view(shape)


class Blocks(TaskGenerator):
    """`blocks` times `count` tasks: from `first` on, and `apart` tasks further each time."""

    def __init__(self, seed: int, first: int, count: int, blocks: int, apart: int) -> None:
        super().__init__(seed, first, count * blocks)
        self._of_block, self._apart = count, apart

    def _numbers(self, device: torch.device) -> Tensor:
        starts = torch.arange(0, self.count // self._of_block * self._apart, self._apart, device=device)
        return (starts[:, None] + torch.arange(self.first, self.first + self._of_block, device=device)).flatten()


def place(op: str, generator: Any, device: torch.device | None, tasks: int) -> torch.device:
    """Where to draw: `device`, where a torch.Generator must be too; else the generator's device; else torch's default.

    A TaskGenerator must have as many tasks as are to be drawn.
    """
    if isinstance(generator, TaskGenerator) and generator.count != tasks:
        raise ValueError(f"{op}: generator must have {tasks} tasks, got one of {generator.count}")
    if generator is not None and not isinstance(generator, torch.Generator | TaskGenerator):
        raise TypeError(f"{op}: generator must be a torch.Generator, got {type(generator).__name__}")
    if device is None:
        return generator.device if isinstance(generator, torch.Generator) else torch.get_default_device()
    if isinstance(generator, torch.Generator) and _numbered(generator.device) != _numbered(device):
        raise ValueError(f"{op}: generator must be on {device}, got one on {generator.device}")
    return device


def _numbered(device: torch.device) -> torch.device:
    """`cuda` and the like without a number mean the current one: the device that a new tensor lands on."""
    return device if device.index is not None else torch.empty(0, device=device).device


def uniform(generator: torch.Generator | TaskGenerator | None, device: torch.device, *shape: int) -> Tensor:
    """Uniform in [0, 1), from either kind of generator: torch's in float32, a TaskGenerator's in float64."""
    if isinstance(generator, TaskGenerator):
        return generator.rand(*shape, device=device)
    return torch.rand(*shape, generator=generator, device=device, dtype=torch.float32)


def _output(state: Tensor, place: Tensor | int) -> Tensor:
    """SplitMix64's output number `place`, counted from 0, after `state`, int64."""
    z = state + (place + 1) * _INCREMENT
    z = (z ^ _shifted(z, 30)) * _FACTORS[0]
    z = (z ^ _shifted(z, 27)) * _FACTORS[1]
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """z >> bits of unsigned numbers."""
    shifted: Tensor = (z >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def _signed(number: int) -> int:
    """The int64 with the same last 64 bits."""
    return (number + 2**63) % 2**64 - 2**63

"""Tasks of different sizes, their rows one after the other, as few batches of equal ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

LITTLE = 1 << 16  # multiply-adds that cost less than another call
LARGE = 1 << 16  # numbers of a task's queries that cost more to copy than another call


@dataclass
class Group:
    """Tasks of one number of ways, each as the same number of queries."""

    ways: int
    most: int  # queries of a task
    is_large: bool  # one task, which is not copied
    tasks: list[int] = field(default_factory=list)  # the one with the most queries first
    filled: int = 0  # multiply-adds for what tasks lack

    def takes(self, size: int, ways: int, features: int) -> bool:
        """Whether a task, of no more queries, goes here: it has 3/4 of these, or filling up costs less than a call."""
        filled = self.filled + (self.most - size) * ways * features
        is_near = 4 * size >= 3 * self.most or (size > 0 and filled <= LITTLE)
        return ways == self.ways and not self.is_large and is_near


def groups_of(sizes: list[int], ways: list[int], features: int) -> list[Group]:
    if len({*sizes}) == len({*ways}) == 1:
        return [Group(ways[0], sizes[0], False, [*range(len(sizes))])]
    found: list[Group] = []
    for t in sorted(range(len(sizes)), key=lambda t: (ways[t], -sizes[t])):
        if not (found and found[-1].takes(sizes[t], ways[t], features)):
            found.append(Group(ways[t], sizes[t], sizes[t] * features > LARGE))
        last = found[-1]
        last.tasks.append(t)
        last.filled += (last.most - sizes[t]) * ways[t] * features
    return found


class Spread:
    """Rows [n, ...], task after task -> for each group [tasks, most, ...], filled up where tasks have less than its most."""

    def __init__(self, groups: list[Group], sizes: list[int], most: list[int]) -> None:
        self.groups, self.sizes, self.most = groups, sizes, most
        self.together = sorted(t for group in groups if not group.is_large for t in group.tasks)
        self.lengths = [n * len(group.tasks) for group, n in zip(groups, most, strict=True) if not group.is_large]
        self.places = self._places()

    def _places(self) -> Tensor | None:
        """Of each row of the tasks that are not large, its place among those of their groups, one after the other; None: the same."""
        begins, base = {}, 0
        for group, n in zip(self.groups, self.most, strict=True):
            for t in () if group.is_large else group.tasks:
                begins[t] = base
                base += n
        sizes = [self.sizes[t] for t in self.together]
        shifts = [begins[t] - start for t, start in zip(self.together, starts_of(sizes), strict=True)]
        return (
            torch.arange(sum(sizes), device="cpu") + repeated(shifts, sizes)
            if any(shifts) or base > sum(sizes)
            else None
        )

    def __call__(self, rows: Tensor, fill: int = 0) -> list[Tensor]:
        of_tasks: Sequence[Tensor] = ()
        if len(self.together) < len(self.sizes):
            of_tasks = rows.split(self.sizes)
            rows = torch.cat([of_tasks[t] for t in self.together]) if self.together else rows[:0]
        if self.places is not None:
            whole = rows.new_full((sum(self.lengths), *rows.shape[1:]), fill)
            rows = whole.index_copy(0, self.places.to(rows.device), rows)
        parts = iter(rows.split(self.lengths))
        return [
            of_tasks[group.tasks[0]][None] if group.is_large else next(parts).unflatten(0, (len(group.tasks), n))
            for group, n in zip(self.groups, self.most, strict=True)
        ]


def gathered(parts: Sequence[Tensor], sizes: list[int], groups: list[Group]) -> list[Tensor]:
    """For each group [tasks, most, ...] -> for each task [size, ...]."""
    found: dict[int, Tensor] = {}
    for group, part in zip(groups, parts, strict=True):
        lengths = [n for t in group.tasks for n in (sizes[t], group.most - sizes[t])]
        found |= dict(zip(group.tasks, part.flatten(0, 1).split(lengths)[::2], strict=True))
    return [found[t] for t in range(len(sizes))]


def in_order(parts: Sequence[Tensor], groups: list[Group]) -> Tensor:
    """For each group [tasks] -> [T]."""
    order = [t for group in groups for t in group.tasks]
    found = torch.cat([*parts])
    if order == [*range(len(order))]:
        return found
    return found[torch.tensor(sorted(range(len(order)), key=order.__getitem__), device=found.device)]


def starts_of(sizes: list[int]) -> list[int]:
    return [0, *itertools.accumulate(sizes)][: len(sizes)]


def repeated(values: Iterable[int], sizes: list[int]) -> Tensor:
    """Each value as often as its size."""
    of_each, times = (torch.tensor([*x], dtype=torch.int64, device="cpu") for x in (values, sizes))
    return of_each.repeat_interleave(times)

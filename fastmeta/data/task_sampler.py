"""Meta-batches over many processes: each rank draws its own tasks, and all of them together draw the same for any world size."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ..types import Draw
from . import _check
from .episodes import Episodes
from .task_generator import LAST, Blocks, TaskGenerator

AT_ONCE = 2**26  # bytes of meta-batches that are drawn in one call


class TaskSampler:
    """An endless iterator of meta-batches of T tasks, split by rank: step s holds the tasks s T .. s T + T - 1, in rank order.

    `draw`: (count, generator) -> so many tasks, e.g. `lambda count, generator: sample_episodes(images, count, 5, 1, 15,
    generator=generator)`; its own random numbers come from `generator.rand(count, ...)`. Task i is the same for every world size.
    `tasks`: T, of all ranks together. Each draws T / world_size, so that the mean over the ranks of the mean over their tasks,
    which DistributedDataParallel makes, is the mean over all.
    `seed`: of the tasks.
    `rank`, `world_size`: None: those of torch.distributed, or 0 and 1 where it has no process group.

    `state_dict()` says where the sequence of tasks is; loaded, it goes on from there, with any world size.

    Errors: ValueError where T is no multiple of world_size, or rank is none below it; TypeError where one of them or the
    seed is no int, and for a draw that cannot be called; RuntimeError under torchrun before init_process_group, where every
    rank would draw the same.
    """

    def __init__(
        self, draw: Draw, tasks: int, *, seed: int = 0, rank: int | None = None, world_size: int | None = None
    ) -> None:
        op = "TaskSampler"
        if not callable(draw):
            raise TypeError(f"{op}: draw must be callable, got {type(draw).__name__}")
        (tasks,) = _check.positive(op, tasks=tasks)
        seed = _check.whole(op, "seed", seed)
        if (rank is None) != (world_size is None):
            raise ValueError(f"{op}: rank and world_size must come together, got {rank!r} and {world_size!r}")
        if rank is None or world_size is None:
            rank, world_size = _of_process_group()
        rank = _check.whole(op, "rank", rank)
        (world_size,) = _check.positive(op, world_size=world_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"{op}: rank must be in 0 .. {world_size - 1}, got {_check.said(rank)}")
        if tasks % world_size:
            raise ValueError(f"{op}: tasks must be a multiple of the {world_size} ranks, got {tasks}")
        self.draw, self.tasks, self.seed = draw, tasks, seed
        self.rank, self.world_size = rank, world_size
        self._next = 0  # the number of the next meta-batch's first task

    def __iter__(self) -> Iterator[Episodes]:
        return self

    def __next__(self) -> Episodes:
        count = self.tasks // self.world_size
        generator = TaskGenerator(self.seed, self._next + self.rank * count, count)
        self._next += self.tasks
        return self.draw(count, generator)

    def batches(self, chunk: int = 64) -> Iterator[Episodes]:
        """The same meta-batches, `chunk` of them drawn in one call, which takes little longer than one of a small problem. They are views
        of what was drawn. The sequence of tasks goes on with each that is taken, so `state_dict` and `next(sampler)` are as ever;
        after a jump in it the next chunk is drawn anew. `draw` must make each task of that task's own numbers alone, as all of
        fastmeta.data does. Errors: ValueError for a chunk below 1."""
        (chunk,) = _check.positive("TaskSampler.batches", chunk=chunk)
        count = self.tasks // self.world_size
        drawn: Iterator[Episodes] = iter(())
        expected = -1
        while True:
            batch = next(drawn, None) if self._next == expected else None
            if batch is None:
                first = self._next + self.rank * count
                many = self.draw(count * chunk, Blocks(self.seed, first, count, chunk, self.tasks))
                drawn = (Episodes(*parts) for parts in zip(*(z.split(count) for z in many), strict=True))
                batch = next(drawn)
            self._next += self.tasks
            expected = self._next
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Errors: TypeError where `state` is no dict, or holds other than ints; ValueError for other keys than those of `state_dict`,
        and for a next task below 0 or above 2**63 - 2**40 - 1. The sampler then stays as it was."""
        op = "TaskSampler.load_state_dict"
        if not isinstance(state, Mapping):
            raise TypeError(f"{op}: state must be a dict, got {type(state).__name__}")
        if set(state) != {"seed", "next"}:
            raise ValueError(f"{op}: state must hold 'seed' and 'next', got {list(state)}")
        seed, following = _check.whole(op, "seed", state["seed"]), _check.whole(op, "next", state["next"], 0, LAST)
        self.seed, self._next = seed, following


def _of_process_group() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise RuntimeError(
            "TaskSampler: init_process_group must come first, or rank and world_size be given, "
            f"got WORLD_SIZE={os.environ['WORLD_SIZE']} and no process group"
        )
    return 0, 1


def meta_batches(sampler: Iterable[Sequence[Tensor]]) -> Iterator[Sequence[Tensor]]:
    """What the sampler gives; of a TaskSampler many at once, as far as they are small."""
    if isinstance(sampler, TaskSampler):
        first = next(sampler)
        yield first
        size = sum(part.nbytes for part in first)
        yield from sampler.batches(min(64, max(1, AT_ONCE // max(1, size))))
    else:
        yield from sampler

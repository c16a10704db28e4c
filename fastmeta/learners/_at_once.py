"""Several tasks at once by torch.vmap, as long as it takes the model and memory lasts; else fewer, or one by one."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ._chain import noise_of, restore
from ._cost import tasks_at_once
from ._problem import Flat, Problem
from ._seen import Learned, is_batched

_functorch: Any = torch._C._functorch
# How functorch says that it cannot: by its own names; by what a tensor without memory cannot do; and where a tensor that all tasks
# share would have to take what each of them computes.
REFUSAL = re.compile(
    r"vmap|functorch|batching rule|BatchedTensor|Tensor that doesn't have storage|doesn't match the broadcast shape"
    r"|no rule registered for HOP",
    re.IGNORECASE,
)
NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"


def run_at_once(function: Callable[[Problem, Flat], Tensor], problem: Problem, flat: Flat) -> Tensor:
    """function(problem, flat) with the best `at_once`."""
    seen = problem.plan.seen
    assert seen is not None
    learned, shapes = seen.learned, tuple(x.shape[1:] for x in flat.data)
    at_once = 1 if learned.one_by_one else tasks_at_once(problem, flat)
    at_once = min(at_once, learned.at_most.get(shapes, at_once))
    refused = False
    while at_once > 1:
        before = Before(problem, flat)
        found, failure = _tried(function, replace(problem, at_once=at_once), flat)
        if failure == "" and not (before.first and before.keeps_batched()):
            learned.vmapped = True
            return found
        before.restore()
        found = None
        refused, at_once = (False, at_once // 2) if failure == "memory" else (True, 1)
        if failure == "memory":
            _note_memory(problem.learner, learned, shapes, at_once)
    found = function(replace(problem, at_once=1), flat)
    if refused:
        learned.one_by_one = True
    return found


def _tried(function: Callable, problem: Problem, flat: Flat) -> tuple[Any, str]:
    """What it gives and "", or why it cannot: "memory" or "refused". Any other error is raised. No traceback outlives the call, so
    what the attempt held is free."""
    try:
        with _no_slow_vmap():
            return function(problem, flat), ""
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or NO_MEMORY in str(error):
            return None, "memory"
        if REFUSAL.search(str(error)):
            return None, "refused"
        raise


def _note_memory(learner: str, learned: Learned, shapes: Any, at_once: int) -> None:
    if not learned.at_most:
        warnings.warn(
            f"{learner}: memory ran out with all tasks at once; half as many, and again, as long as it does. task_chunk sets "
            "how many",
            stacklevel=2,
        )
    if len(learned.at_most) >= 64:
        learned.at_most.clear()
    learned.at_most[shapes] = at_once


class Before:
    """What an attempt may spoil: the state of the generators and, the first time, buffers and attributes of the model."""

    def __init__(self, problem: Problem, flat: Flat) -> None:
        self.noise = noise_of(flat.data[0])
        learned = problem.plan.seen.learned if problem.plan.seen is not None else Learned()
        self.first = not learned.vmapped
        self.kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.buffers: list[tuple[Tensor, Tensor]] = []
        if self.first:
            modules = list(problem.plan.task.modules())
            self.kept = [(own, dict(own)) for m in modules for own in (m.__dict__, m._buffers)]
            self.buffers = [(b, b.clone()) for b in problem.plan.task.buffers()]

    def keeps_batched(self) -> bool:
        """Whether the model has kept something that torch.vmap made: its next call would take all tasks for one."""
        return any(is_batched(x) for own, _ in self.kept for x in own.values())

    def restore(self) -> None:
        restore(self.noise)
        for own, before in self.kept:
            for name in [name for name, x in own.items() if is_batched(x)]:
                if name in before:
                    own[name] = before[name]
                else:
                    del own[name]
        with torch.no_grad():
            for b, value in self.buffers:
                b.copy_(value)


@contextlib.contextmanager
def _no_slow_vmap() -> Iterator[None]:
    """An operator without a rule for vmap raises, instead of running in a loop of vmap's own."""
    allowed = _functorch._is_vmap_fallback_enabled()
    _functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        _functorch._set_vmap_fallback_enabled(allowed)

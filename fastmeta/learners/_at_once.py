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
from torch.overrides import TorchFunctionMode

from ._chain import noise_of, restore
from ._cost import tasks_at_once
from ._problem import Flat, Problem
from ._seen import Learned, is_batched
from ._state import State

_functorch: Any = torch._C._functorch
# How functorch says that it cannot: by its own names; by what a tensor without memory cannot do; and where a tensor that all tasks
# share would have to take what each of them computes.
REFUSAL = re.compile(
    r"vmap|functorch|batching rule|BatchedTensor|Tensor that doesn't have storage|doesn't match the broadcast shape"
    r"|no rule registered for HOP",
    re.IGNORECASE,
)
_own: Any = Tensor
HIDDEN = (
    _own.requires_grad.__get__, _own.grad_fn.__get__, _own.is_leaf.__get__, _own.register_hook, _own.retain_grad,
)  # fmt: skip
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
        attempt = Attempt(problem, flat)
        with attempt.watch:
            found, failure = _tried(function, replace(problem, at_once=at_once), flat, attempt)
        if found is not None and not attempt.differs():
            learned.vmapped = attempt.modes
            return found
        attempt.undo()
        found = None
        refused, at_once = (False, at_once // 2) if failure == "memory" else (True, 1)
        if failure == "memory":
            _note_memory(problem.learner, learned, shapes, at_once)
    found = function(replace(problem, at_once=1), flat)
    if refused:
        learned.one_by_one = True
    return found


def _tried(
    function: Callable[[Problem, Flat], Tensor], problem: Problem, flat: Flat, attempt: Attempt
) -> tuple[Tensor | None, str]:
    """What it gives and "", or why it cannot: "memory" or "refused". Any other error is raised. No traceback outlives the call, so
    what the attempt held is free."""
    try:
        with _no_slow_vmap():
            return function(problem, flat), ""
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or NO_MEMORY in str(error):
            return None, "memory"
        if REFUSAL.search(str(error)) or attempt.differs():
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


class Attempt:
    """What it may spoil, and, the first time in these modes, a watch on what the model does otherwise in one task alone."""

    def __init__(self, problem: Problem, flat: Flat) -> None:
        seen = problem.plan.seen
        assert seen is not None
        self.modes = seen.modes_now()
        self.noise = noise_of(flat.data[0])
        self.first = seen.learned.vmapped != self.modes
        self.state = State(problem, flat) if self.first else None
        self.watch: contextlib.AbstractContextManager[Any] = Watch() if self.first else contextlib.nullcontext()

    def differs(self) -> bool:
        """Whether the model asked what torch.vmap hides, or has kept something that it made: its next call would take all tasks for
        one."""
        asked = isinstance(self.watch, Watch) and self.watch.asked
        return asked or (self.state is not None and any(map(is_batched, self.state.values())))

    def undo(self) -> None:
        if self.state is None:
            restore(self.noise)
        else:
            self.state.put_back()


class Watch(TorchFunctionMode):
    """Whether a tensor of several tasks was asked for its place in autograd's graph, which torch.vmap hides: it then answers that
    it needs no gradient, and hooks on gradients are never called."""

    asked = False

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in HIDDEN and is_batched(args[0]):
            self.asked = True
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _no_slow_vmap() -> Iterator[None]:
    """An operator without a rule for vmap raises, instead of running in a loop of vmap's own."""
    allowed = _functorch._is_vmap_fallback_enabled()
    _functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        _functorch._set_vmap_fallback_enabled(allowed)

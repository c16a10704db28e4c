"""Several tasks at once by torch.vmap, as long as it takes the model and memory lasts; else fewer, or one by one. How many, and of how
many steps the graphs are kept, is told by what one task's graph holds."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .._autograd import is_autocast
from .._torch import BUFFERS, GRAPH_QUESTIONS, is_of_vmap, without_slow_vmap
from .chain import leaf, noise_of, restore
from .inner_problem import Flat, Problem
from .users_model import Learned

# How functorch says that it cannot: by its own names; by what a tensor without memory cannot do; and where a tensor that all tasks
# share would have to take what each of them computes.
REFUSAL = re.compile(
    r"vmap|functorch|batching rule|BatchedTensor|Tensor that doesn't have storage|doesn't match the broadcast shape"
    r"|no rule registered for HOP",
    re.IGNORECASE,
)
NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"
AT_ONCE = 56 << 20  # bytes of a CPU's caches and pages that several tasks share without losing more than they win
FEWEST = 4  # tasks at once that are faster than one by one
# Arrays like the parameters that a task holds: before and after a step, gradient, direction, product, v.
OF_PARAMETERS = 6
OF_GRADIENT = 3  # an example's graph, with that of its gradient, over its graph for the loss alone


def run_at_once(function: Callable[[Problem, Flat], Any], problem: Problem, flat: Flat) -> Any:
    """function(problem, flat) with the best `at_once`."""
    seen = problem.seen
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


def _tried(function: Callable[[Problem, Flat], Any], problem: Problem, flat: Flat, attempt: Attempt) -> tuple[Any, str]:
    """What it gives and "", or why it cannot: "memory" or "refused". Any other error is raised. No traceback outlives the call, so
    what the attempt held is free."""
    try:
        with without_slow_vmap():
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
        seen = problem.seen
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
        if func in GRAPH_QUESTIONS and is_batched(args[0]):
            self.asked = True
        return func(*args, **(kwargs or {}))


class State:
    """The generators', and, of all modules, attributes and buffers, values of these included. (What the attributes hold, lists say,
    is not copied.)"""

    def __init__(self, problem: Problem, flat: Flat) -> None:
        self.noise = noise_of(flat.data[0])
        modules = list(problem.task.modules())
        held = (own for m in modules for own in (m.__dict__, getattr(m, BUFFERS)))
        self.attributes = [(own, dict(own)) for own in held if isinstance(own, dict)]  # a scripted module's are none
        self.buffers = [(b, b.clone()) for b in problem.task.buffers()]

    def put_back(self) -> None:
        restore(self.noise)
        for own, before in self.attributes:
            for name in [name for name in own if name not in before]:
                del own[name]
            for name, value in before.items():
                if own.get(name) is not value:
                    own[name] = value
        with torch.no_grad():
            for b, value in self.buffers:
                if b.is_meta or not torch.equal(b, value):
                    b.copy_(value)

    def values(self) -> list[Any]:
        """All attributes and buffers as they are now."""
        return [x for own, _ in self.attributes for x in own.values() if isinstance(x, Tensor)]


def tasks_at_once(problem: Problem, flat: Flat) -> int:
    """1: one by one, without a task axis. On a GPU as many as there are."""
    tasks = len(flat.data[0])
    most = min(tasks, problem.at_once or tasks)
    if most < FEWEST or not flat.data[0].is_cpu:
        return most
    per_example, of_parameters = _bytes(problem, flat)
    examples = max(x.shape[1] for x in flat.data[::2])
    most = min(most, AT_ONCE // max(per_example * examples + OF_PARAMETERS * of_parameters, 1))
    return most if most >= FEWEST else 1


def graphs_kept(problem: Problem, flat: Flat) -> int:
    """The last steps whose graphs stay until the way back: as long as all of them are not larger than the query's graph and the
    parameters of all steps, or than what does not matter."""
    if problem.steps < 2:
        return 1
    per_example, of_parameters = _bytes(problem, flat)
    shots, queries = int(flat.data[0].shape[1]), int(flat.data[2].shape[1])
    free = max(per_example * queries + problem.steps * of_parameters, AT_ONCE // problem.at_once)
    return max(1, free // max(OF_GRADIENT * per_example * shots, 1))


def _bytes(problem: Problem, flat: Flat) -> tuple[int, int]:
    """What a graph saves of one example of the support; the adapted parameters of a task."""
    of_task = next(flat.parts(1, problem.of_tasks))
    x = of_task.data[0]
    known = problem.seen.learned.saved if problem.seen is not None else {}
    key = (x.shape, x.dtype, is_autocast(x.device.type))
    if key not in known:
        known[key] = _measured(problem, of_task) // max(len(x), 1)
    return known[key], sum(p.numel() * p.element_size() for p in of_task.theta)


def _measured(problem: Problem, of_task: Flat) -> int:
    theta = [leaf(p, True) for p in of_task.theta]
    params = {p.untyped_storage().data_ptr() for p in (*theta, *of_task.shared)}
    found: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return saved

    x, y = of_task.data[:2]
    state = State(problem, of_task)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        problem.call(theta, [p.detach() for p in of_task.shared], x, y)
    state.put_back()
    return sum(size for place, size in found.items() if place not in params)


def is_batched(x: Any) -> bool:
    return isinstance(x, Tensor) and is_of_vmap(x)

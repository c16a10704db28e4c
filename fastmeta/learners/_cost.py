"""How many tasks the general engine takes at once, and how many steps' graphs it keeps, from what one task's graph holds."""

from __future__ import annotations

import torch
from torch import Tensor

from ._chain import leaf
from ._problem import Flat, Problem
from ._state import State

AT_ONCE = 56 << 20  # bytes of a CPU's caches and pages that several tasks share without losing more than they win
FEWEST = 4  # tasks at once that are faster than one by one
OF_PARAMETERS = (
    6  # arrays like the parameters that a task holds: before and after a step, gradient, direction, product, v
)
OF_GRADIENT = 3  # an example's graph, with that of its gradient, over its graph for the loss alone


def tasks_at_once(problem: Problem, flat: Flat) -> int:
    """1: one by one, without a task axis. On a GPU as many as there are."""
    tasks = len(flat.data[0])
    most = min(tasks, problem.at_once or tasks)
    if most < FEWEST or flat.data[0].is_cuda:
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
    known = problem.plan.seen.learned.saved if problem.plan.seen is not None else {}
    key = (x.shape, x.dtype, torch.is_autocast_enabled(x.device.type))
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

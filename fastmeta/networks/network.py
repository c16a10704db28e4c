"""What a learner asks of its network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._dispatch import refuse_export
from .._torch import is_functional, tree_map_only
from .chain import Captured, InnerLoop, Update
from .inner_problem import Flat, Problem, check_classes, problem_of
from .tasks_at_once import run_at_once
from .users_model import Seen, Task

Data = tuple[Tensor, ...]  # of a batch of tasks: support_x, support_y, query_x, and for a loss query_y
Solve = Callable[[Problem, Flat], Any]


@dataclass
class Network:
    """A model in an inner loop: four functions. For a batch of tasks: `losses` and `predict`, whatever runs them, each with its
    derivatives of every order. For learners with a way back of their own, inside `run`: `adapt`, `gradients` and
    `of_query`.

    Rates: one for all adapted parameters, or a list with one like each.
    """

    learner: str
    task: Task
    adapted: list[str]  # names of the model's parameters
    seen: Seen | None  # None inside torch.compile
    steps: int
    first_order: bool
    task_chunk: int | None

    def losses(self, rates: Any, data: Data, weights: tuple[float, ...] | None = None) -> Tensor:
        """The query loss after the inner steps, [T]; with weights the weighted sum of those after each step."""
        raise NotImplementedError

    def losses_and_outputs(
        self, rates: Any, data: Data, weights: tuple[float, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        """`losses`, and `predict` from the same pass, without a graph."""
        raise NotImplementedError

    def predict(self, rates: Any, data: Data) -> Tensor:
        """The outputs for the query after the inner steps, [T, Q, ...]."""
        raise NotImplementedError

    def adapt(self, problem: Problem, flat: Flat, optimiser: Callable[[], Update] | None = None) -> list[Tensor]:
        """The adapted parameters after the inner steps, [T, ...], without a graph. `optimiser`: makes the update; None: SGD."""
        raise NotImplementedError

    def gradients(self, inner: InnerLoop, theta: Sequence[Tensor], create_graph: bool) -> list[Tensor]:
        """dL_support/dtheta of the tasks of `inner`."""
        raise NotImplementedError

    def of_query(self, problem: Problem, theta: Sequence[Tensor], flat: Flat) -> Tensor:
        """[T, Q, ...] outputs, or [T] losses where the query has targets, of the parameters theta [T, ...], with their graph."""
        return problem.on_query(theta, flat)

    @property
    def meta_loss_op(self) -> str | None:
        """The op that `losses` is, of `leaves` and rates first, where it is one."""
        return None

    @property
    def leaves(self) -> list[Tensor]:
        raise NotImplementedError

    @property
    def classes(self) -> int | None:
        """How many the outputs have, for cross-entropy, where that can be told before the network runs."""
        return None

    def run(
        self,
        solve: Solve,
        unrolled: Solve,
        rates: Any,
        data: Data,
        weights: tuple[float, ...] | None = None,
        start: Sequence[Tensor] = (),
        return_outputs: bool = False,
    ) -> Any:
        """`solve` on `data`, with as many tasks at once as is best; `unrolled` where it cannot
        run. `start`: what the last of the adapted parameters start from, [T, ...]."""
        problem = problem_of(
            self.learner, self.task, self.seen, self.adapted, rates=rates, steps=self.steps, first_order=self.first_order,
            task_chunk=self.task_chunk, of_tasks=len(start), weights=weights, return_outputs=return_outputs,
        )  # fmt: skip
        refuse_export(self.learner)
        flat = problem.all_of(rates, data, start)
        if is_functional() or torch.compiler.is_compiling():
            return unrolled(problem, flat)
        classes = self.classes
        if classes is not None:
            check_classes(self.learner, classes, *data[1::2])
        if torch.is_inference_mode_enabled():  # there not even an inner loop has a gradient
            with torch.inference_mode(False), torch.no_grad():
                found = _by_autograd(solve, unrolled, problem, Flat(*tree_map_only(Tensor, _ordinary, tuple(flat))))
        else:
            found = _by_autograd(solve, unrolled, problem, flat)
        if classes is None and self.task.classes:
            check_classes(self.learner, self.task.classes[0], *data[1::2])
        return found


def _by_autograd(solve: Solve, unrolled: Solve, problem: Problem, flat: Flat) -> Any:
    try:
        return run_at_once(solve, problem, flat)
    except Captured:
        return unrolled(problem, flat)


def _ordinary(x: Tensor) -> Tensor:
    """`x` as a tensor that autograd takes."""
    return x.clone() if x.is_inference() else x


def refuse(problem: Problem, flat: Flat) -> Tensor:
    """`unrolled` of a learner that has no such way."""
    raise RuntimeError(
        f"{problem.learner}: must run outside torch.func, forward-mode AD and torch.compile, got a call inside"
    )

"""An inner loop on any module: what is adapted, what else is trained, how a task is evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _check
from ..reference.mlp_loss import IGNORE_INDEX
from .called import called
from .task_convolutions import task_convolutions
from .users_model import Seen, Task, stands_in


class Flat(NamedTuple):
    """All that the losses of some tasks depend on; or whether a gradient to each is wanted."""

    theta: tuple[Any, ...]
    shared: tuple[Any, ...]
    rates: tuple[Any, ...]
    data: tuple[Any, ...]  # support_x, support_y, and query_x, query_y where the query belongs to it

    def items(self) -> tuple[Any, ...]:
        return (*self.theta, *self.shared, *self.rates, *self.data)

    def parts(self, at_once: int, of_tasks: int = 0) -> Iterator[Flat]:
        """1: one task after the other, without its axis; else so many at once, with a task axis for the parameters too.
        `of_tasks`: how many of theta, the last ones, have that axis before."""
        own = len(self.theta) - of_tasks
        for begin in range(0, len(self.data[0]), at_once):
            rows: Any = begin if at_once == 1 else slice(begin, begin + at_once)
            data, theirs = tuple(x[rows] for x in self.data), tuple(p[rows] for p in self.theta[own:])
            theta, shared = self.theta[:own], self.shared
            if at_once > 1:
                theta, shared = (tuple(p.expand(len(data[0]), *p.shape) for p in ps) for ps in (theta, shared))
            yield Flat((*theta, *theirs), shared, self.rates, data)


@dataclass(frozen=True)
class Problem:
    """`adapted` parameters change in the inner loop; `shared` ones are trained too, but stay."""

    learner: str
    task: Task
    seen: Seen | None
    adapted: tuple[str, ...]
    shared: tuple[str, ...]
    rate_axes: tuple[int, ...]  # of each rate, beside [steps]: one rate for all, or one like each adapted parameter
    steps: int
    first_order: bool
    of_tasks: int  # of the adapted ones, the last, how many start from values of each task
    weights: tuple[float, ...] | None  # of the query losses after each step; None: the last alone counts
    at_once: int  # tasks; 1: one by one, without a task axis; 0: as many as the engine likes
    return_outputs: bool  # beside the query losses

    def call(
        self, adapted: Sequence[Tensor], shared: Sequence[Tensor], *inputs: Tensor, return_outputs: bool = False
    ) -> Any:
        """The outputs of one task for (x), its loss for (x, y); with `return_outputs` both."""
        values = dict(zip((*self.adapted, *self.shared), (*adapted, *shared), strict=True))
        return called(self.task, values, inputs, **({"return_outputs": True} if return_outputs else {}))

    def call_tasks(
        self,
        adapted: Sequence[Tensor],
        shared: Sequence[Tensor],
        *inputs: Tensor,
        own: bool = True,
        return_outputs: bool = False,
    ) -> Any:
        """`call` of all tasks at once, [T, ...]; `own`: shared ones have a task axis too."""
        call = partial(self.call, return_outputs=return_outputs)
        with task_convolutions(inputs[0]):
            axes = (0, 0 if own else None, *[0] * len(inputs))
            return torch.vmap(call, axes, randomness="different")(list(adapted), list(shared), *inputs)

    def on_query(self, theta: Sequence[Tensor], flat: Flat) -> Tensor:
        """[T, Q, ...] outputs, or [T] losses where the query has targets, of the parameters theta [T, ...]."""
        query = flat.data[2:]
        if self.at_once > 1:
            found: Tensor = self.call_tasks(theta, flat.shared, *query, own=False)
            return found
        tasks = zip(*theta, *query, strict=True)
        n = len(theta)
        return torch.stack([self.call(of_task[:n], flat.shared, *of_task[n:]) for of_task in tasks])

    def all_of(self, rates: Any, data: tuple[Tensor, ...], start: Sequence[Tensor]) -> Flat:
        """All that the losses depend on now; `start`: what the last of the adapted parameters start from, [T, ...]."""
        params = dict(self.task.named_parameters())
        own = self.adapted[: len(self.adapted) - len(start)]
        theta, shared = (*(params[path] for path in own), *start), tuple(params[path] for path in self.shared)
        return Flat(theta, shared, tuple(rates) if isinstance(rates, list) else (rates,), data)

    def flat(self, items: Sequence[Any]) -> Flat:
        """`items` as `Flat.items` lists them."""
        a = len(self.adapted)
        b = a + len(self.shared)
        c = b + len(self.rate_axes)
        return Flat(tuple(items[:a]), tuple(items[a:b]), tuple(items[b:c]), tuple(items[c:]))

    def per_step(self, i: int, rate: Any) -> bool:
        """Whether rate i has a leading [steps]."""
        return isinstance(rate, Tensor) and rate.ndim == self.rate_axes[i] + 1

    def rates_at(self, rates: Sequence[Any], k: int) -> Any:
        """The rates of step k, as `sgd_step` takes them."""
        at = [rate[k] if self.per_step(i, rate) else rate for i, rate in enumerate(rates)]
        return at if self.rate_axes != (0,) else at[0]

    def parts(self, flat: Flat) -> Iterator[Flat]:
        return flat.parts(self.at_once, self.of_tasks)

    def has_tasks(self, place: int, items: int, data: int) -> bool:
        """Whether an item of a `Flat` has a task axis; `data`: how many of its items are data."""
        last = len(self.adapted)
        return last - self.of_tasks <= place < last or place >= items - data

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Of the parts of the tasks (`Flat.parts`) -> of all, with a task axis."""
        return torch.cat(tuple(parts)) if self.at_once > 1 else torch.stack(tuple(parts))

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """`join` undone."""
        return x.split(self.at_once) if self.at_once > 1 else x.unbind()

    def summed(self, grads: Sequence[Sequence[Tensor]], needs: Sequence[bool], data: int) -> list[Tensor]:
        """The wanted gradients of each part -> of all tasks: those to the last `data` items keep the task axis."""
        found = []
        places = (i for i, need in enumerate(needs) if need)
        for place, parts in zip(places, zip(*grads, strict=True), strict=True):
            whole = self.join(parts)
            found.append(whole if self.has_tasks(place, len(needs), data) else whole.sum(0))
        return found


def problem_of(
    learner: str,
    task: Task,
    seen: Seen | None,
    changing_of_model: Sequence[str],
    *,
    rates: Any,
    steps: int,
    first_order: bool,
    task_chunk: int | None,
    of_tasks: int = 0,
    weights: tuple[float, ...] | None = None,
    return_outputs: bool = False,
) -> Problem:
    """`changing_of_model`: the adapted parameters by their names in the model. `rates`: one for all of them, or a list with one like
    each."""
    params = dict(task.named_parameters())
    refuse_sharded(learner, params)
    chosen = {f"model.{path}" for path in changing_of_model}
    changing = tuple(path for path in params if path in chosen)
    staying = tuple(path for path, p in params.items() if path not in chosen and (p.requires_grad or stands_in(p)))
    check_rates(learner, rates, {path: params[path] for path in changing[: len(changing) - of_tasks]}, steps)
    axes = tuple(params[path].ndim for path in changing) if isinstance(rates, list) else (0,)
    return Problem(
        learner,
        task,
        seen,
        changing,
        staying,
        axes,
        steps,
        first_order,
        of_tasks,
        weights,
        task_chunk or 0,
        return_outputs,
    )


def check_classes(learner: str, classes: int, support_y: Tensor, query_y: Tensor | None = None) -> None:
    """ValueError for a label outside [0, classes) that is not -100, where it may be looked at; elsewhere it ends in NaN."""
    for label, y in (("support_y", support_y), ("query_y", query_y)):
        if y is not None:
            _check.label_range(learner, label, y, classes, IGNORE_INDEX)


def refuse_sharded(learner: str, params: Mapping[str, Tensor]) -> None:
    """TypeError for parameters that FSDP has not gathered: its hooks would put the whole ones over those of the inner loop."""
    for path, p in params.items():
        if not torch.compiler.is_compiling() and hasattr(p, "device_mesh"):
            raise TypeError(f"{learner}: {path} must be a tensor with memory of its own, got {type(p.data).__name__}")


def check_rates(learner: str, rates: Any, adapted: Mapping[str, Tensor], steps: int) -> None:
    """One finite rate for all, a number or a tensor, 0-dim or [steps]; or a list with one for each parameter, of its shape, perhaps
    with [steps] in front."""
    each = isinstance(rates, list)
    if each and len(rates) != len(adapted):
        raise ValueError(
            f"{learner}: there must be a rate for each of the {len(adapted)} adapted parameters, got {len(rates)}"
        )
    named = {f"the rate of {path}": rate for path, rate in zip(adapted, rates, strict=True)} if each else {"lr": rates}
    cores = [tuple(p.shape) for p in adapted.values()] if each else [()]
    for (name, rate), core in zip(named.items(), cores, strict=True):
        if isinstance(rate, Tensor) and tuple(rate.shape) not in (core, (steps, *core)):
            raise ValueError(
                f"{learner}: {name} must have shape {list(core)} or {[steps, *core]}, got {list(rate.shape)}"
            )
        if adapted and isinstance(rate, Tensor):
            _check.floating(learner, **dict([next(iter(adapted.items()))]), **{name: rate})
        _check.rate(learner, name, rate)

"""An inner loop on any module: what is adapted, what else is trained, how a task is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ._convolution import task_convolutions

if TYPE_CHECKING:
    from ._conv import ConvNet

Loss = Callable[[Tensor, Tensor], Tensor]


class Task(nn.Module):
    """x -> the model's outputs; (x, y) -> their loss. One module, so that a loss may have parameters of its own."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        outputs = self.model(x)
        return outputs if y is None else self.loss(outputs, y)


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
    adapted: tuple[str, ...]
    shared: tuple[str, ...]
    rate_axes: tuple[int, ...]  # of each rate, beside [steps]: one rate for all, or one like each adapted parameter
    steps: int
    first_order: bool
    of_tasks: int  # of the adapted ones, the last, how many start from values of each task
    weights: tuple[float, ...] | None  # of the query losses after each step; None: the last alone counts
    net: ConvNet | None  # what a native kernel may run whole; None: the general engine alone
    at_once: int  # tasks; 1: one by one, without a task axis; 0: as many as the engine likes

    def call(self, adapted: Sequence[Tensor], shared: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        """The outputs of one task for (x), its loss for (x, y)."""
        values = dict(zip((*self.adapted, *self.shared), (*adapted, *shared), strict=True))
        found = functional_call(self.task, values, inputs)
        if len(inputs) == 2 and not (isinstance(found, Tensor) and found.ndim == 0):
            came = f"shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{self.learner}: loss must return a 0-dim tensor for the examples of a task, got {came}")
        return found

    def call_tasks(
        self, adapted: Sequence[Tensor], shared: Sequence[Tensor], *inputs: Tensor, own: bool = True
    ) -> Tensor:
        """`call` of all tasks at once, [T, ...]; `own`: shared ones have a task axis too."""
        with task_convolutions(inputs[0]):
            axes = (0, 0 if own else None, *[0] * len(inputs))
            return torch.vmap(self.call, axes, randomness="different")(list(adapted), list(shared), *inputs)

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
    adapted: Sequence[str],
    *,
    rates: Any,
    steps: int,
    first_order: bool,
    task_chunk: int | None,
    of_tasks: int = 0,
    weights: tuple[float, ...] | None = None,
    net: ConvNet | None = None,
) -> Problem:
    """`adapted`: names of the model's parameters, whatever stands in for them now: torch.func.functional_call may put in
    tensors that require no gradient. `rates`: one for all of them, or a list with one like each."""
    params = dict(task.named_parameters())
    chosen = {f"model.{path}" for path in adapted}
    changing = tuple(path for path in params if path in chosen)
    staying = tuple(path for path, p in params.items() if path not in chosen and p.requires_grad)
    if isinstance(rates, list) and len(rates) != len(changing):
        raise ValueError(
            f"{learner}: there must be a rate for each of the {len(changing)} adapted parameters, got {len(rates)}"
        )
    if isinstance(rates, Tensor) and rates.shape not in ((), (steps,)):
        raise ValueError(f"{learner}: lr must have shape [] or [{steps}], got {list(rates.shape)}")
    axes = tuple(params[path].ndim for path in changing) if isinstance(rates, list) else (0,)
    return Problem(
        learner, task, changing, staying, axes, steps, first_order, of_tasks, weights, net, at_once=task_chunk or 0
    )


def adapted_names(learner: str, model: nn.Module, adapt: Sequence[str] | None) -> list[str]:
    """The trained parameters that `adapt` chooses, by their names or those of modules that hold them. None: all."""
    trained = [path for path, p in model.named_parameters() if p.requires_grad]
    if adapt is None:
        return trained
    if isinstance(adapt, str) or not all(isinstance(name, str) for name in adapt):
        raise ValueError(f"{learner}: adapt must be a sequence of names of parameters or modules, got {adapt!r}")
    for name in adapt:
        if not any(_within(path, name) for path in trained):
            raise ValueError(
                f"{learner}: adapt must name parameters with requires_grad, or modules with some, got {name!r}"
            )
    return [path for path in trained if any(_within(path, name) for name in adapt)]


def _within(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")

"""The user's model: with its loss, on the examples of one task (`Task`), and what was seen of it (`Seen`). A comparison that costs
microseconds tells whether all of it still holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain, repeat
from operator import attrgetter, is_, methodcaller
from typing import Any

import torch
from torch import Tensor, nn

from .._autograd import is_autocast
from .._torch import BUFFERS, CHILDREN, GLOBAL_HOOKS, HOOKS, PARAMETERS, AnyNorm
from ..reference.mlp_loss import task_loss
from .functions import Sine

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES = ("cross_entropy", "mse")
# The layers that a kernel knows, and what they run; those whose options matter to it.
KNOWN = (
    nn.Sequential, nn.Flatten, nn.Linear, nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.Identity,
    nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.LogSoftmax,
    nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.LeakyReLU, nn.Dropout, nn.Dropout2d, nn.SiLU, Sine,
)  # fmt: skip
FORWARD: dict[Any, Any] = {kind: kind.forward for kind in KNOWN}
WITH_OPTIONS = (
    nn.Flatten, nn.GELU, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.LogSoftmax, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.LeakyReLU, nn.SiLU,
    AnyNorm,
)  # fmt: skip

FORWARDS = repeat("forward")
_values = methodcaller("values")
_trained = attrgetter("requires_grad")
_trains = attrgetter("training")


class Bare(nn.Module):
    """A module of ours around the user's, of which no global hook of modules is to hear."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


class Task(Bare):
    """x -> the model's outputs; (x, y) -> their loss. One module, so that a loss may have parameters of its own."""

    def __init__(self, learner: str, model: nn.Module, loss: str | Loss) -> None:
        super().__init__()
        self.learner, self.model, self.loss = learner, model, loss
        self.classes: list[int] = []  # of the outputs that cross-entropy has seen last

    def forward(self, x: Tensor, y: Tensor | None = None, return_outputs: bool = False) -> Any:
        outputs = self._outputs(x)
        if y is None:
            return outputs
        loss = self._loss_of(outputs, y)
        return (loss, outputs) if return_outputs else loss

    def _outputs(self, x: Tensor) -> Tensor:
        outputs = self.model(x)
        if not isinstance(outputs, Tensor):
            raise TypeError(f"{self.learner}: model must return a tensor, got {type(outputs).__name__}")
        if self.loss == "cross_entropy":
            self._check_logits(outputs)
        return outputs

    def _loss_of(self, outputs: Tensor, y: Tensor) -> Tensor:
        if isinstance(self.loss, str):
            if self.loss == "mse":
                self._check_numbers(outputs, y)
            return task_loss(outputs, y, self.loss)
        return self._of_function(self.loss(outputs, y))

    def _check_logits(self, outputs: Tensor) -> None:
        if outputs.ndim != 2 or not outputs.is_floating_point():
            raise ValueError(
                f"{self.learner}: for cross-entropy the model must return floating outputs [n, classes], "
                f"got {outputs.dtype} of shape {list(outputs.shape)}"
            )
        if not torch.compiler.is_compiling():
            self.classes[:] = [outputs.shape[1]]

    def _check_numbers(self, outputs: Tensor, y: Tensor) -> None:
        if outputs.shape != y.shape:
            raise ValueError(
                f"{self.learner}: targets must have the shape of a task's outputs, {list(outputs.shape)}, got {list(y.shape)}"
            )
        if outputs.dtype != y.dtype and not is_autocast(y.device.type):
            raise TypeError(
                f"{self.learner}: targets must have the dtype of the outputs, {outputs.dtype}, got {y.dtype}"
            )

    def _of_function(self, found: Any) -> Tensor:
        if not isinstance(found, Tensor) or found.ndim:
            came = f"shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{self.learner}: loss must return a 0-dim tensor for the examples of a task, got {came}")
        return found


def _forward(kind: type) -> Any:
    return getattr(kind, "forward", None)  # a scripted module has none of its class


@dataclass
class Learned:
    """What the engine has found out about a network."""

    one_by_one: bool = False  # torch.vmap refuses it
    vmapped: list[bool] | None = None  # the modes in which torch.vmap has taken it
    at_most: dict[Any, int] = field(default_factory=dict)  # tasks at once, by the shapes of one, where memory ran out
    saved: dict[Any, int] = field(default_factory=dict)  # bytes that a graph saves of an example


class Seen:
    """Of some modules and all below: their classes, hooks, own `forward`s, children and options, and, apart, their parameters."""

    def __init__(self, *roots: nn.Module) -> None:
        modules = list(dict.fromkeys(m for root in roots for m in root.modules()))
        self.modules = modules  # kept, so that no other object can stand in their place
        self.kinds = [*map(type, modules)]
        self.classes: list[Any] = [*dict.fromkeys(self.kinds)]
        self.runs = [*map(_forward, self.classes)]
        self.own = [m.__dict__ for m in modules]
        self.own_runs = [*map(dict.get, self.own, FORWARDS)]
        watched = [getattr(m, name) for m in modules for name in (CHILDREN, *HOOKS)]
        watched += [getattr(m, BUFFERS) for m in modules if isinstance(m, AnyNorm)]
        watched += [m.__dict__ for m in modules if isinstance(m, WITH_OPTIONS)]
        watched = [d for d in (*watched, *GLOBAL_HOOKS) if isinstance(d, dict)]
        slots = [getattr(m, PARAMETERS) for m in modules]
        self.empty = [d for d in (*watched, *slots) if not d]
        self.filled = [d for d in watched if d]
        self.contents = [*map(dict, self.filled)]
        self.slots = [d for d in slots if d]
        self.parameters = values_of(self.slots)
        self.tensors = [p for p in self.parameters if p is not None]
        self.trained = [*map(_trained, self.tensors)]
        self.learned = Learned()
        self.reads: list[
            tuple[Callable[[Any], Any], Any, Any]
        ] = []  # what else was read: how, of what name, what was there

    def holds(self) -> bool:
        """Whether the network is the same, but for its parameters and what its buffers hold."""
        try:
            return (
                not any(self.empty)
                and [*map(type, self.modules)] == self.kinds
                and [*map(dict.get, self.own, FORWARDS)] == self.own_runs
                and [*map(_forward, self.classes)] == self.runs
                and self.filled == self.contents
                and all(how(name) is value for how, name, value in self.reads)
            )
        except (RuntimeError, ValueError):  # an option that is an array now
            return False

    def same_parameters(self) -> bool:
        """Whether its parameters are the same objects, frozen where they were; their values may have changed."""
        return same_objects(values_of(self.slots), self.parameters) and [*map(_trained, self.tensors)] == self.trained

    def run_now(self) -> tuple[list[bool], list[Any]]:
        """Each module's mode, and the buffers."""
        return self.modes_now(), values_of([getattr(m, BUFFERS) for m in self.modules])

    def same_run(self, run: tuple[list[bool], list[Any]]) -> bool:
        """Whether the same runs again as when `run` was noted: the network, each module in its mode, and, where tensors stood in for
        parameters during the call, the buffers that it had then."""
        modes, buffers = run
        modes_now, buffers_now = self.run_now()
        if any(map(stands_in, self.tensors)) and not same_objects(buffers_now, buffers):
            return False
        return self.holds() and modes_now == modes

    def modes_now(self) -> list[bool]:
        """Which modules are in training mode."""
        return [*map(_trains, self.modules)]


def values_of(dicts: Iterable[dict[str, Any]]) -> list[Any]:
    return [*chain.from_iterable(map(_values, dicts))]


def same_objects(now: list[Any], before: list[Any]) -> bool:
    return len(now) == len(before) and all(map(is_, now, before))


def is_plain(model: nn.Module) -> bool:
    """Whether nothing but layers of known classes runs when the model is called: no hooks, no forward of an instance's own."""
    if any(GLOBAL_HOOKS):
        return False
    for m in model.modules():
        kind = type(m)
        if kind not in FORWARD or kind.forward is not FORWARD[kind] or "forward" in m.__dict__:
            return False
        if any(getattr(m, hooks) for hooks in HOOKS):
            return False
    return True


def is_linear(model: nn.Module) -> bool:
    """Whether it is x W' + b and nothing else."""
    return type(model) is nn.Linear and is_plain(model)


def stands_in(p: Tensor) -> bool:
    """Whether torch.func.functional_call, or the like, has put a tensor in a parameter's place."""
    return not isinstance(p, nn.Parameter)

"""What was seen of a network. A comparison that costs microseconds tells whether all of it still holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, repeat
from operator import attrgetter, is_, methodcaller
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module
from torch.nn.modules.batchnorm import _NormBase

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    _module._global_forward_hooks,
    _module._global_forward_pre_hooks,
    _module._global_backward_hooks,
    _module._global_backward_pre_hooks,
)
# The layers that a kernel knows, and what they run; those whose options matter to it.
KNOWN = (
    nn.Sequential, nn.Flatten, nn.Linear, nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.Identity,
    nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm, nn.MaxPool2d,
)  # fmt: skip
FORWARD: dict[Any, Any] = {kind: kind.forward for kind in KNOWN}
WITH_OPTIONS = (nn.Flatten, nn.GELU, nn.Conv2d, nn.GroupNorm, nn.MaxPool2d, _NormBase)

FORWARDS = repeat("forward")
_values = methodcaller("values")
_trained = attrgetter("requires_grad")
_trains = attrgetter("training")


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
        watched = [getattr(m, name) for m in modules for name in ("_modules", *HOOKS)]
        watched += [m._buffers for m in modules if isinstance(m, _NormBase)]
        watched += [m.__dict__ for m in modules if isinstance(m, WITH_OPTIONS)]
        watched = [d for d in (*watched, *GLOBAL_HOOKS) if isinstance(d, dict)]
        slots = [m._parameters for m in modules]
        self.empty = [d for d in (*watched, *slots) if not d]
        self.filled = [d for d in watched if d]
        self.contents = [*map(dict, self.filled)]
        self.slots = [d for d in slots if d]
        self.parameters = values_of(self.slots)
        self.tensors = [p for p in self.parameters if p is not None]
        self.trained = [*map(_trained, self.tensors)]
        self.buffers = values_of([m._buffers for m in modules])
        self.modes = self.modes_now()
        self.learned = Learned()

    def holds(self) -> bool:
        """Whether the network is the same, but for its parameters and what its buffers hold."""
        try:
            return (
                not any(self.empty)
                and [*map(type, self.modules)] == self.kinds
                and [*map(dict.get, self.own, FORWARDS)] == self.own_runs
                and [*map(_forward, self.classes)] == self.runs
                and self.filled == self.contents
            )
        except (RuntimeError, ValueError):  # an option that is an array now
            return False

    def same_parameters(self) -> bool:
        """Whether its parameters are the same objects, frozen where they were; their values may have changed."""
        return same_objects(values_of(self.slots), self.parameters) and [*map(_trained, self.tensors)] == self.trained

    def same_run(self) -> bool:
        """Whether the same runs again: the network, each module in its mode, and, where tensors stood in for parameters during the
        call, the buffers that it had then."""
        apart = any(map(stands_in, self.tensors))
        if apart and not same_objects(values_of([m._buffers for m in self.modules]), self.buffers):
            return False
        return self.holds() and self.modes_now() == self.modes

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
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
            return False
    return True


def is_linear(model: nn.Module) -> bool:
    """Whether it is x W' + b and nothing else."""
    return type(model) is nn.Linear and is_plain(model)


def stands_in(p: Tensor) -> bool:
    """Whether torch.func.functional_call, or the like, has put a tensor in a parameter's place."""
    return not isinstance(p, nn.Parameter)


def is_batched(x: Any) -> bool:
    return isinstance(x, Tensor) and torch._C._functorch.is_batchedtensor(x)

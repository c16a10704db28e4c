"""What was seen of a network. A comparison that costs microseconds tells whether all of it still holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter, is_, methodcaller
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module
from torch.nn.modules.batchnorm import _NormBase

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS: tuple[dict, ...] = (
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

_forward_of = methodcaller("get", "forward")  # of an instance's own dict
_values_of = methodcaller("values")
_trained = attrgetter("requires_grad")
_trains = attrgetter("training")


@dataclass
class Learned:
    """What the engine has found out about a network."""

    one_by_one: bool = False  # torch.vmap refuses it
    vmapped: bool = False  # torch.vmap has taken it
    at_most: dict[Any, int] = field(default_factory=dict)  # tasks at once, by the shapes of one, where memory ran out
    saved: dict[Any, int] = field(default_factory=dict)  # bytes that a graph saves of an example


class Seen:
    """Of `root` and all modules below: their classes, hooks, own `forward`s, children and options, and, apart, their parameters."""

    def __init__(self, root: nn.Module) -> None:
        self.modules = list(root.modules())  # kept, so that no other object can stand in their place
        self.kinds = [*map(type, self.modules)]
        self.classes: list[Any] = [*dict.fromkeys(self.kinds)]
        self.runs = [kind.forward for kind in self.classes]
        self.own = [m.__dict__ for m in self.modules]
        self.own_forwards = [*map(_forward_of, self.own)]
        watched = [m.__dict__ for m in self.modules if isinstance(m, WITH_OPTIONS)]
        watched += [getattr(m, name) for m in self.modules for name in ("_modules", *HOOKS)]
        self.dicts = [d for d in (*watched, *GLOBAL_HOOKS) if isinstance(d, dict)]
        self.contents = [*map(dict, self.dicts)]
        self.buffers = _Objects([m._buffers for m in self.modules])
        self.statistics = _Objects([m._buffers for m in self.modules if isinstance(m, _NormBase)])
        self.parameters = _Objects([m._parameters for m in self.modules])
        self.tensors = [p for p in self.parameters.before if p is not None]
        self.trained = [*map(_trained, self.tensors)]
        self.modes = [*map(_trains, self.modules)]
        self.learned = Learned()

    def holds(self) -> bool:
        """Whether the network is the same, but for its parameters and what its buffers hold."""
        try:
            return (
                [*map(type, self.modules)] == self.kinds
                and [kind.forward for kind in self.classes] == self.runs
                and [*map(_forward_of, self.own)] == self.own_forwards
                and self.dicts == self.contents
                and self.statistics.same()
            )
        except (RuntimeError, ValueError):  # an option that is an array now
            return False

    def same_run(self) -> bool:
        """Whether the same runs again: the network, each module in its mode, and, where tensors stood in for parameters during the
        call, the buffers that it had then."""
        buffers = self.buffers.same() or not any(map(stands_in, self.tensors))
        return buffers and self.holds() and [*map(_trains, self.modules)] == self.modes

    def same_parameters(self) -> bool:
        """Whether its parameters are the same objects, frozen where they were; their values may have changed."""
        return self.parameters.same() and [*map(_trained, self.tensors)] == self.trained


class _Objects:
    """The values of dicts, by identity."""

    def __init__(self, dicts: list[dict[str, Any]]) -> None:
        self.dicts = dicts
        self.before = [*chain.from_iterable(map(_values_of, dicts))]

    def same(self) -> bool:
        now = [*chain.from_iterable(map(_values_of, self.dicts))]
        return len(now) == len(self.before) and all(map(is_, now, self.before))


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


def stands_in(p: Tensor) -> bool:
    """Whether torch.func.functional_call, or the like, has put a tensor in a parameter's place."""
    return not isinstance(p, nn.Parameter)


def is_batched(x: Any) -> bool:
    return isinstance(x, Tensor) and torch._C._functorch.is_batchedtensor(x)

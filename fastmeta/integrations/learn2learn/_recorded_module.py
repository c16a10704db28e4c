"""Clones of modules that record."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..recording import RecordedModule, gives_up, refuses, thetas_now, trace_of


def recorded_clone(module: nn.Module) -> Any:
    """A clone of `module` that records; None: it computes at once."""
    kind: Any = type(module)
    own = kind.parameters is not nn.Module.parameters or kind.__call__ is not nn.Module.__call__
    if own or refuses(module):
        return None
    trace = trace_of(module, 1.0)  # each step has a rate of its own
    if trace is None:
        return None
    trace.start.watched = True
    return _kind(kind).of(trace, training=module.training)


@functools.cache
def _kind(plain: Any) -> Any:
    return type(plain.__name__, (RecordedClone, plain), {"plain": plain, "__module__": plain.__module__})


class RecordedClone(RecordedModule):
    """It becomes a module of class `plain`."""

    plain: Any

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        if not recurse:
            return iter(self.compute("some parameters were asked for").parameters(recurse))
        return iter(thetas_now(self, self.__dict__["_trace"]))

    def compute(self, why: str) -> Any:
        own = self.__dict__
        trace = own.pop("_trace")
        gives_up(trace, why)
        module = trace.module()
        module.training = own["training"]
        own.clear()
        own.update(module.__dict__)
        object.__setattr__(self, "__class__", self.plain)
        return self

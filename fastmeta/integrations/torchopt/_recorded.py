"""Modules whose steps are recorded in the place of their parameters."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..._torch import BUFFERS, COMPILED_CALL, PARAMETERS
from .._steps import Container
from ..recording import (
    NO_GRAD,
    Method,
    Outputs,
    Stepper,
    Trace,
    Unsettled,
    adapted,
    are_parameters,
    gives_up,
    refuses,
    trace_of,
)  # fmt: skip


class Listener:
    """What is called in the place of a module that a plain MetaSGD steps. While steps are recorded its parameters are `Unsettled`."""

    of_one_module = True  # a copy of the module has none

    def __init__(
        self, module: nn.Module, rate: Any, method: Method | None, stepper: Callable[[], Stepper] | None
    ) -> None:
        """`stepper`: makes what takes the steps of a method operation by operation, from the first on."""
        self._module, self.rate, self.method, self.stepper = weakref.ref(module), rate, method, stepper
        self.trace: Trace | None = None  # of the last outputs
        self.unsettled: list[Unsettled] = []

    @property
    def module(self) -> nn.Module:
        found = self._module()
        assert found is not None
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        if not self.unsettled and refuses(module):
            return module._call_impl(*args, **kwargs)
        if len(args) == 1 and not kwargs and type(args[0]) is Tensor:
            trace = self.trace if self.unsettled else self._started(module)
            why = "" if trace is None else trace.why_not(args[0])
            if trace is not None and not why:
                return Outputs.of(trace, args[0], trace.shape)
            if trace is not None and self.unsettled and why == NO_GRAD:
                return Outputs.of(trace, args[0], trace.shape).evaluated()
            if self.unsettled:
                self.settle(why)
        return module._call_impl(*args, **kwargs)

    def _started(self, module: nn.Module) -> Trace | None:
        if not are_parameters(module):
            return None
        own = module.__dict__
        own[COMPILED_CALL] = None
        try:
            stepper = None if self.stepper is None else self.stepper()
            self.trace = trace_of(module, self.rate, buffers=True, method=self.method, stepper=stepper)
        finally:
            own[COMPILED_CALL] = self
        if self.trace is not None:
            self.trace.clone = weakref.ref(self)
            if self.trace.calls is not None:
                self._unsettle()
        return self.trace

    def _unsettle(self) -> None:
        trace = self.trace
        assert trace is not None
        parts = trace.start.known.seen.modules
        kinds = (PARAMETERS,) if trace.calls is None else (PARAMETERS, BUFFERS)
        self.unsettled = [Unsettled(self, part, kind) for kind in kinds for part in parts if getattr(part, kind)]

    def step(self, loss: Any) -> bool:
        """Whether a step on `loss` was recorded; else the parameters are there."""
        if self.trace is not None and adapted(self.trace, loss, False):
            if not self.unsettled:
                self._unsettle()
            return True
        self.settle("a step on a loss that is not recorded")
        return False

    @property
    def places(self) -> list[tuple[Container, str, int]]:
        """Where each parameter lies, before the steps are there, and which it is."""
        assert self.trace is not None
        place = {id(p): i for i, p in enumerate(self.trace.start.params)}
        held = [getattr(part, PARAMETERS) for part in self.module.modules()]
        return [(d, name, place[id(p)]) for d in held for name, p in d.items() if p is not None]

    def settle(self, why: str) -> None:
        """The parameters after the steps that were recorded, in their places."""
        if not self.unsettled:
            return
        trace = self.trace
        assert trace is not None
        gives_up(trace, why)
        self._leave()
        theta = trace.parameters(len(trace.steps))
        for held, name, i in self.places:
            held[name] = theta[i]
        if trace.calls is not None:
            trace.calls.leave(trace, trace.start.known.norms)
        self.trace = None

    def put_back(self, state: Any) -> bool:
        """Whether the state is that from which the recorded steps started, which then are nobody's any more."""
        trace = self.trace
        if not self.unsettled or trace is None:
            return False
        held_before = [x.original for x in self.unsettled if x.kind == PARAMETERS]
        before = [{name: p for name, p in held.items() if p is not None} for held in held_before]  # as a state has them
        same = len(state.params) == len(before) and all(
            [*held] == [*was] and [*map(id, held.values())] == [*map(id, was.values())]
            for held, was in zip(state.params, before, strict=True)
        )
        if not same:
            return False
        kept = {id(b) for x in self.unsettled if x.kind == BUFFERS for b in x.original.values()}
        self._leave()
        if trace.calls is not None and (
            not state.buffers or any(id(b) in kept for d in state.buffers for b in d.values())
        ):
            trace.calls.leave(trace, trace.start.known.norms)
        self.trace = None
        return True

    def _leave(self) -> None:
        for x in self.unsettled:
            x.leave()
        self.unsettled = []

    def stop(self) -> None:
        if listener_of(self.module) is self:
            del self.module.__dict__[COMPILED_CALL]

    def __deepcopy__(self, memo: Any) -> None:
        return None

    def __reduce__(self) -> Any:
        return type(None), ()


def listener_of(module: nn.Module) -> Listener | None:
    found = module.__dict__.get(COMPILED_CALL)
    return found if isinstance(found, Listener) else None


def settle(module: nn.Module) -> None:
    """The parameters of `module` are in their places from here on."""
    for part in module.modules() if Unsettled.count else ():
        for kind in (PARAMETERS, BUFFERS):
            held = getattr(part, kind)
            if isinstance(held, Unsettled):
                held.listener.settle("another optimiser or state has the parameters")


def listen(
    module: nn.Module, rate: Any, method: Method | None = None, stepper: Callable[[], Stepper] | None = None
) -> Listener | None:
    """From now on the module's calls are recorded; None: somebody else has compiled it."""
    if getattr(module, COMPILED_CALL) is not None and listener_of(module) is None:
        return None
    module.__dict__[COMPILED_CALL] = listener = Listener(module, rate, method, stepper)
    return listener

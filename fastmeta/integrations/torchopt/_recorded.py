"""Modules whose steps are recorded in the place of their parameters."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn

from ..._torch import COMPILED_CALL, PARAMETERS
from .._steps import Container
from ..recording import NO_GRAD, Outputs, Trace, adapted, gives_up, trace_of


class Listener:
    """What is called in the place of a module that a plain MetaSGD steps. While steps are recorded its parameters are `Unsettled`."""

    of_one_module = True  # a copy of the module has none

    def __init__(self, module: nn.Module, rate: Any) -> None:
        self._module, self.rate = weakref.ref(module), rate
        self.trace: Trace | None = None  # of the last outputs
        self.unsettled: list[Unsettled] = []

    @property
    def module(self) -> nn.Module:
        found = self._module()
        assert found is not None
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
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
        parameters = [p for part in module.modules() for p in getattr(part, PARAMETERS).values()]
        if any(type(p) is not nn.Parameter for p in parameters):  # they are results of steps
            return None
        own = module.__dict__
        own[COMPILED_CALL] = None
        try:
            self.trace = trace_of(module, self.rate)
        finally:
            own[COMPILED_CALL] = self
        if self.trace is not None:
            self.trace.clone = weakref.ref(self)
        return self.trace

    def step(self, loss: Any) -> bool:
        """Whether a step on `loss` was recorded; else the parameters are there."""
        if self.trace is not None and adapted(self.trace, loss, False):
            if not self.unsettled:
                self.unsettled = [Unsettled(self, part) for part in self.module.modules() if getattr(part, PARAMETERS)]
            return True
        self.settle("a step on a loss that is not recorded")
        return False

    def settle(self, why: str) -> None:
        """The parameters after the steps that were recorded, in their places."""
        if not self.unsettled:
            return
        trace = self.trace
        assert trace is not None
        gives_up(trace, why)
        self._leave()
        theta = trace.parameters(len(trace.steps))
        places = trace.start.known.places
        for part in self.module.modules():
            held: Container = getattr(part, PARAMETERS)
            held.update({name: theta[places[id(p)]] for name, p in held.items() if p is not None})

    def put_back(self, state: Any) -> bool:
        """Whether the state is that from which the recorded steps started, which then are nobody's any more."""
        if not self.unsettled:
            return False
        before = [x.original for x in self.unsettled]
        same = len(state) == len(before) and all(
            held.keys() == was.keys() and all(held[name] is was[name] for name in held)
            for held, was in zip(state, before, strict=True)
        )
        if same:
            self._leave()
            self.trace = None
        return same

    def _leave(self) -> None:
        for x in self.unsettled:
            x.part.__dict__[PARAMETERS] = x.original
        self.unsettled = []

    def stop(self) -> None:
        if listener_of(self.module) is self:
            del self.module.__dict__[COMPILED_CALL]

    def __deepcopy__(self, memo: Any) -> None:
        return None

    def __reduce__(self) -> Any:
        return type(None), ()


class Unsettled(dict[str, Any]):
    """In the place of a dict of parameters: who looks into it gets those after the steps."""

    def __init__(self, listener: Listener, part: nn.Module) -> None:
        super().__init__()
        self.listener, self.part = listener, part
        self.original: Container = getattr(part, PARAMETERS)
        part.__dict__[PARAMETERS] = self

    def __len__(self) -> int:
        return len(self.original)

    def __bool__(self) -> bool:
        return bool(self.original)


def _settled(name: str) -> Any:
    def of_original(self: Unsettled, *args: Any, **kwargs: Any) -> Any:
        self.listener.settle("parameters were asked for")
        return getattr(self.original, name)(*args, **kwargs)

    return of_original


for _name in (
    "__iter__", "__getitem__", "__setitem__", "__delitem__", "__contains__", "__eq__", "__ne__", "__or__", "__ior__", "__ror__",
    "__reversed__", "__repr__", "__reduce_ex__", "get", "items", "keys", "values", "pop", "popitem", "setdefault", "update", "clear",
    "copy",
):  # fmt: skip
    setattr(Unsettled, _name, _settled(_name))


def listener_of(module: nn.Module) -> Listener | None:
    found = module.__dict__.get(COMPILED_CALL)
    return found if isinstance(found, Listener) else None


def settle(module: nn.Module) -> None:
    """The parameters of `module` are in their places from here on."""
    for part in module.modules():
        held = getattr(part, PARAMETERS)
        if isinstance(held, Unsettled):
            held.listener.settle("another optimiser or state has the parameters")


def listen(module: nn.Module, rate: Any) -> Listener | None:
    """From now on the module's calls are recorded; None: somebody else has compiled it."""
    if getattr(module, COMPILED_CALL) is not None and listener_of(module) is None:
        return None
    module.__dict__[COMPILED_CALL] = listener = Listener(module, rate)
    return listener

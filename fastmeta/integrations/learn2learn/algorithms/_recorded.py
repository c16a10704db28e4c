"""Clones that record."""

from __future__ import annotations

from typing import Any, Self

from torch import nn

from ...recording import Outputs, Recorder, Trace, adapted, note, refer


def trace_of(learner: Any, kind: type[Any], rates: Any) -> Trace | None:
    """Of a clone of `learner`; None: it computes at once. `rates`: None: its `lrs`."""
    if type(learner) is not kind:
        return None
    own = learner.__dict__
    recorder = own.get("_recorder")
    if recorder is None:
        recorder = own["_recorder"] = Recorder()
    found: Trace | None = recorder.start(learner.module, list(learner.lrs) if rates is None else rates)
    return found


class RecordedClone(nn.Module):
    """A clone without a module of its own until somebody asks for anything but outputs and steps: it then is a `plain` learner."""

    plain: type
    _trace: Trace

    @classmethod
    def of(cls, trace: Trace, **options: Any) -> Self:
        clone = cls.__new__(cls)
        clone.__dict__.update(options, _trace=trace, training=True)
        refer(trace, clone)
        return clone

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        trace = self.__dict__["_trace"]
        why = trace.why_not(args[0]) if len(args) == 1 and not kwargs else "other arguments than inputs"
        if not why:
            return Outputs.of(trace, args[0], trace.shape)
        return self.compute(why)(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self(*args, **kwargs)

    def took(self, loss: Any, first_order: bool | None) -> bool:
        """Whether a step on `loss` was recorded; else it is now a plain learner."""
        own = self.__dict__
        if "_trace" in own:
            if adapted(own["_trace"], loss, own["first_order"] if first_order is None else first_order):
                return True
            self.compute("a step on a loss that is not recorded")
        return False

    def compute(self, why: str) -> Any:
        """It, as a learner with parameters of its own."""
        own, plain = self.__dict__, self.plain
        trace = own.pop("_trace")
        note("plain", trace.start.known.name, why)
        module, rates = trace.module(), trace.rates
        options = {name: own[name] for name in own if name != "training"}
        own.clear()
        options["lrs" if isinstance(rates, list) else "lr"] = rates
        object.__setattr__(self, "__class__", plain)
        plain.__init__(self, module, **options)  # type: ignore[misc]
        return self

    def __getattr__(self, name: str) -> Any:
        if "_trace" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.compute(f"{name} was asked for"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if "_trace" in self.__dict__:
            self.compute(f"{name} was assigned")
        setattr(self, name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.compute("it was copied").__reduce_ex__(protocol)

"""Which models are recorded, what of them is known, and what stands for a clone of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..._torch import PARAMETERS, is_plain
from . import report
from .known import Known
from .losses import adapted
from .method import Method, Stepper
from .recorded import Outputs
from .start import Start
from .statistics import Calls, Log
from .trace import NO_GRAD, Trace, refer

MISSES = 16  # before a model is given up
SKIPS, MOST_SKIPS = 32, 1 << 14  # clones of a model that was refused, before it is looked at again: at first, at most
KEPT = "_recorder"  # the attribute of a model


class Recorder:
    """Of one model: what is known of it, and what its clones start from."""

    known: Known | None = None
    latest: Start | None = None
    refused: tuple[str, str] = ("", "")  # the name of the model and why it is not recorded
    skips = 0  # how many clones more are not even asked for
    patience = SKIPS  # how many after the next refusal; twice as many each time
    looks = uses = 0  # how often the model was looked at, and how often what was seen then served

    def __init__(self) -> None:
        self.log = Log()  # of calls of clones that share the model's buffers

    def start(self, model: nn.Module, rates: Any, copies: bool, method: Method | None) -> Start | None:
        if self.skips:
            self.skips -= 1
            report.note("plain", *self.refused)
            return None
        known = self.known
        if known is None or not known.holds(model):
            self.uses += 0 if known is None else known.used
            self.looks += 1
            self.log.settle("the model is another")
            known = self.known = Known(model)
            self.latest = None
            if self.looks > MISSES and self.uses < self.looks:
                self._refuse(known, "the model changes again and again")
                return None
        if known.why or (known.missed > MISSES and known.missed > 4 * known.used):
            self._refuse(known, known.why or "its outputs go to operations that are not recorded")
            return None
        if method is not None and not known.native:
            report.note("plain", known.name, "only native ops take steps with momentum or decay, or of Adam")
            return None
        if copies:
            return Start(known, rates, [p.detach().clone().requires_grad_() for p in known.params], method)
        start = self.latest
        if start is None or start.method != method or not same_rates(start.rates, rates) or not start.same():
            self.latest = start = Start(known, rates, None, method)
        return start

    def _refuse(self, known: Known, why: str) -> None:
        self.refused, self.skips = (known.name, why), self.patience
        self.patience = min(2 * self.patience, MOST_SKIPS)
        report.note("plain", known.name, why)

    def __reduce__(self) -> Any:
        return type(None), ()  # a copy of the model has none


def trace_of(
    model: Any, rates: Any, copies: bool = False, tracked: bool = True, buffers: bool = False,
    method: Method | None = None, stepper: Stepper | None = None,
) -> Trace | None:  # fmt: skip
    """Of a clone of `model`; None: it computes at once. `copies`: it starts from leaves of its own. `tracked`: gradients go through its
    steps. `buffers`: it has its own. `method`: of its steps, and `stepper` takes them operation by operation."""
    if not report.ON or not isinstance(model, nn.Module) or not is_plain():
        return None
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return None
    own = model.__dict__
    recorder = own.get(KEPT)
    if recorder is None:
        recorder = own[KEPT] = Recorder()
    start = recorder.start(model, rates, copies, method)
    if start is None:
        return None
    trace = Trace(start, tracked, stepper)
    if start.known.statistics:
        trace.calls = Calls(None if buffers else recorder.log)
        trace.buffers = [b.clone() for b in model.buffers()] if buffers else []
    return trace


def refuses(model: Any) -> bool:
    """Whether a model was refused, and is not to be looked at yet."""
    recorder = model.__dict__.get(KEPT) if isinstance(model, nn.Module) else None
    if not report.ON or recorder is None or not recorder.skips:
        return not report.ON
    recorder.skips -= 1
    report.note("plain", *recorder.refused)
    return True


def are_parameters(model: nn.Module) -> bool:
    """Whether no parameter of the model is the result of a step. Of a model that was looked at: none of those seen then."""
    recorder = model.__dict__.get(KEPT)
    known = None if recorder is None else recorder.known
    held = [getattr(part, PARAMETERS) for part in model.modules()] if known is None else known.seen.slots
    return all(type(p) is nn.Parameter or p is None for of_part in held for p in of_part.values())


def same_rates(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_rates, a, b))
    return a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and type(a) is type(b) and bool(a == b))


class RecordedModule(nn.Module):
    """A clone without submodules of its own, until somebody asks for anything but outputs: `compute` then makes it one that has them."""

    _trace: Trace

    @classmethod
    def of(cls, trace: Trace, **attributes: Any) -> Self:
        clone = cls.__new__(cls)
        clone.__dict__.update({"training": True} | attributes, _trace=trace)
        refer(trace, clone)
        return clone

    def compute(self, why: str) -> Any:
        """It, with parameters of its own and of another class."""
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        trace = self.__dict__["_trace"]
        why = trace.why_not(args[0]) if len(args) == 1 and not kwargs else "other arguments than inputs"
        if trace.calls is not None:
            why = trace.calls.why_not() or why
        if not why:
            return Outputs.of(trace, args[0], trace.shape)
        if why == NO_GRAD:
            return Outputs.of(trace, args[0], trace.shape).evaluated()
        return self.compute(why)(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self(*args, **kwargs)

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


def gives_up(trace: Trace, why: str) -> None:
    """Notes that a clone gets parameters of its own, which are computed operation by operation."""
    trace.start.known.missed += 1
    report.note("plain", trace.start.known.name, why)
    if trace.calls is not None and trace.calls.log is not None:
        trace.calls.log.computes(trace.clone)


def computes(module: nn.Module) -> None:
    """If it is a clone that records, it now has parameters of its own."""
    if isinstance(module, RecordedModule) and "_trace" in module.__dict__:
        module.compute("its parameters are exchanged")


def took(clone: Any, loss: Any, first_order: bool) -> bool:
    """Whether a step on `loss` was recorded; else the clone now has parameters of its own."""
    trace = clone.__dict__.get("_trace")
    if trace is None:
        return False
    if adapted(trace, loss, first_order):
        return True
    clone.compute("a step on a loss that is not recorded")
    return False


class Later(Sequence[Tensor]):
    """The parameters of a clone after k steps, once somebody looks."""

    def __init__(self, clone: Any) -> None:
        self.clone, self.trace = clone, clone.__dict__["_trace"]
        self.k = len(self.trace.steps)

    def __getitem__(self, i: Any) -> Any:
        return self.trace.parameters(self.k)[i]

    def __len__(self) -> int:
        return len(self.trace.start.params)

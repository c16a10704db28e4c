"""Inner loops that record."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...loops.optimisers import SGD, AdamEpsHat, InnerOptimiser
from .._steps import active
from ..recording import Later, Method, RecordedModule, gives_up, method_of, refuses, took, trace_of
from ._optimisers import DifferentiableAdam, DifferentiableOptimizer, DifferentiableSGD, Override
from .optim import _made_of, get_diff_optim
from .patch import _functional, monkeypatch

PLAIN: Literal[False] = False  # p - lr g
OPTIONS = {  # which the native ops take, and those that must be off
    torch.optim.SGD: (("momentum", "weight_decay", "nesterov"), ("dampening", "maximize")),
    torch.optim.Adam: (("betas", "eps", "weight_decay"), ("amsgrad", "maximize", "decoupled_weight_decay")),
}
OURS: dict[type, tuple[type[DifferentiableOptimizer], type[InnerOptimiser]]] = {
    torch.optim.SGD: (DifferentiableSGD, SGD),
    torch.optim.Adam: (DifferentiableAdam, AdamEpsHat),
}


def recorded(
    model: nn.Module, opt: torch.optim.Optimizer, override: Override | None, copies: bool, tracked: bool
) -> tuple[Any, Any] | None:
    """A copy of `model` and an optimiser that record; None: they compute at once."""
    right = isinstance(model, nn.Module) and isinstance(opt, torch.optim.Optimizer)
    if not right or refuses(model) or not isinstance(copies, bool) or not isinstance(tracked, bool):
        return None
    rates, method = rates_of(model, opt, override), how(opt)
    if rates is None or method is None:
        return None
    kept = Kept(model, opt, override, tracked)
    stepper = None if method is PLAIN else kept.take
    trace = trace_of(model, rates, copies, tracked, buffers=True, method=method or None, stepper=stepper)
    if trace is None:
        return None
    kind: Any = type(model)
    plain: Any = OURS[type(opt)][0]
    fmodel = _kind(kind).of(trace, _copies=copies, training=model.training)
    return fmodel, _steps_of(plain)(fmodel, kept)


def how(opt: torch.optim.Optimizer) -> Method | Literal[False] | None:
    """How the steps of `opt` are taken, the same for all of its groups; False: p - lr g. None: by what the ops do not have."""
    if type(opt) not in OURS or opt.state:
        return None
    theirs, ours = OURS[type(opt)]
    taken, off = OPTIONS[type(opt)]
    first, *others = opt.param_groups
    if _made_of[type(opt)] is not theirs or any(active(group.get(name)) for group in opt.param_groups for name in off):
        return None
    if any(isinstance(group[name], Tensor) or group[name] != first[name] for group in others for name in taken):
        return None
    if theirs is DifferentiableSGD and not any(active(first[name]) for name in taken):
        return PLAIN
    return method_of(ours, **{name: first[name] for name in taken})


def rates_of(model: nn.Module, opt: torch.optim.Optimizer, override: Override | None) -> Any:
    """One rate for all parameters of `model`, or a list with one for each; None: `opt` does not step all of them, or by other rates than
    are recorded."""
    override, groups = {} if override is None else override, opt.param_groups
    if not isinstance(override, dict):
        return None
    given = override.get("lr")
    if [*override] not in ([], ["lr"]) or (given is not None and not isinstance(given, list | tuple)):
        return None
    if given is not None and len(given) not in (1, len(groups)):
        return None
    of_groups = [group["lr"] for group in groups] if given is None else list(given)
    if len(of_groups) == 1:
        of_groups *= len(groups)
    rates = {id(p): rate for group, rate in zip(groups, of_groups, strict=True) for p in group["params"]}
    try:
        found = [rates.pop(id(p)) for p in nn.Module.parameters(model)]
    except KeyError:
        return None
    if rates or not all(type(r) is float or (isinstance(r, Tensor) and r.is_floating_point()) for r in found):
        return None
    first = found[0]
    same = all(r is first or (type(r) is float and r == first) for r in found)
    return first if same and (type(first) is float or first.ndim == 0) else found


class RecordedCopy(RecordedModule):
    """It becomes what `monkeypatch` makes."""

    def compute(self, why: str) -> Any:
        own = self.__dict__
        trace = own.pop("_trace")
        known = trace.start.known
        gives_up(trace, why)
        thetas = [trace.parameters(k) for k in range(len(trace.steps) + 1)]
        model = known.model if known.holds(known.model) else known.template
        plain = monkeypatch(model, None, own["_copies"], trace.tracked)
        plain._fast_params = thetas if trace.tracked else thetas[-1:]
        plain._put(plain._fast_params[-1])
        kind: Any = type(model)
        for now, before in zip(plain.buffers() if trace.buffers else (), trace.buffers, strict=True):
            now.copy_(before)
        if trace.calls is not None:
            trace.calls.leave(trace, [[*plain.modules()][i] for i in known.places_of_norms])
        own.clear()
        own.update(plain.__dict__)
        object.__setattr__(self, "__class__", _functional(kind))
        return self


@functools.cache
def _kind(model: type) -> Any:
    plain = _functional(model)
    return type(plain.__name__, (RecordedCopy, plain), {})


class Kept:
    """What an optimiser of recorded steps is made of, as it was then; and the plain one, with its state, once these have been taken
    operation by operation."""

    plain: Any = None

    def __init__(self, model: nn.Module, opt: torch.optim.Optimizer, override: Override | None, tracked: bool) -> None:
        self.made_of, self.tracked = (model, opt, override), tracked
        self.options = [{name: x for name, x in group.items() if name != "params"} for group in opt.param_groups]

    def made(self) -> Any:
        """The plain optimiser; its steps from the first on are those that have been taken."""
        if self.plain is None:
            model, opt, override = self.made_of
            params = nn.Module.parameters(model)
            self.plain = get_diff_optim(opt, params, None, None, override, track_higher_grads=self.tracked)
            for group, before in zip(self.plain.param_groups, self.options, strict=True):
                group.update({name: x for name, x in before.items() if name not in (override or ())})
            self.plain.state = [defaultdict(dict) for _ in self.options]  # that of `opt` was empty
        return self.plain

    def take(self, theta: list[Tensor], grads: Sequence[Tensor], rates: Any) -> list[Tensor]:
        """The parameters after the next step, at `rates`."""
        plain = self.made()
        now = [group["lr"] for group in plain.param_groups]
        for group, places in zip(plain.param_groups, plain._places, strict=True):
            if places:
                group["lr"] = rates[places[0]] if isinstance(rates, list) else rates
        with torch.set_grad_enabled(self.tracked):
            after: list[Tensor] = plain._stepped(theta, list(grads))
        for group, lr in zip(plain.param_groups, now, strict=True):
            group["lr"] = lr
        return after


class RecordedSteps:
    """Of an optimiser, which becomes a plain one once somebody asks for anything but a step."""

    def __init__(self, fmodel: Any, kept: Kept) -> None:
        self.__dict__["_of"] = fmodel, kept

    def step(self, loss: Tensor, params: Any = None, override: Any = None, grad_callback: Any = None) -> Any:
        own = self.__dict__
        if "_of" in own:
            fmodel = own["_of"][0]
            if params is None and override is None and grad_callback is None and took(fmodel, loss, False):
                return Later(fmodel)
            self.compute()
        return self.step(loss, params, override, grad_callback)  # the plain one's

    def compute(self) -> Any:
        fmodel, kept = self.__dict__.pop("_of")
        if "_trace" in fmodel.__dict__:
            fmodel.compute("its optimiser was asked for more than plain steps")
        plain = kept.made()
        self.__dict__.update(plain.__dict__, _fmodel=fmodel, _track_higher_grads=fmodel.track_higher_grads)
        object.__setattr__(self, "__class__", type(plain))
        return self

    def __getattr__(self, name: str) -> Any:
        if "_of" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.compute(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if "_of" in self.__dict__:
            self.compute()
        setattr(self, name, value)


@functools.cache
def _steps_of(plain: type) -> Any:
    return type(plain.__name__, (RecordedSteps, plain), {})

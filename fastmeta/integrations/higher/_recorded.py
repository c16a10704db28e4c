"""Inner loops that record."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from .._steps import active
from ..recording import Later, RecordedModule, gives_up, refuses, took, trace_of
from ._optimisers import DifferentiableSGD, Override
from .optim import _made_of, get_diff_optim
from .patch import _functional, monkeypatch

PLAIN = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")  # options that are off in p - lr g


def recorded(
    model: nn.Module, opt: torch.optim.Optimizer, override: Override | None, copies: bool, tracked: bool
) -> tuple[Any, Any] | None:
    """A copy of `model` and an optimiser that record; None: they compute at once."""
    right = isinstance(model, nn.Module) and isinstance(opt, torch.optim.Optimizer)
    if not right or refuses(model) or not isinstance(copies, bool) or not isinstance(tracked, bool):
        return None
    rates = rates_of(model, opt, override)
    trace = None if rates is None else trace_of(model, rates, copies, tracked, buffers=True)
    if trace is None:
        return None
    kind: Any = type(model)
    fmodel = _kind(kind).of(trace, _copies=copies)
    return fmodel, RecordedSGD(fmodel, model, opt, override)


def rates_of(model: nn.Module, opt: torch.optim.Optimizer, override: Override | None) -> Any:
    """One rate for all parameters of `model`, or a list with one for each; None: `opt` is not plain SGD on all of them."""
    if type(opt) is not torch.optim.SGD or _made_of[torch.optim.SGD] is not DifferentiableSGD or opt.state:
        return None
    override, groups = {} if override is None else override, opt.param_groups
    if not isinstance(override, dict):
        return None
    given = override.get("lr")
    if [*override] not in ([], ["lr"]) or (given is not None and not isinstance(given, list | tuple)):
        return None
    if given is not None and len(given) not in (1, len(groups)):
        return None
    if any(active(group[option]) for group in groups for option in PLAIN):
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


class RecordedSGD(DifferentiableSGD):
    """It becomes a plain one once somebody asks for anything but a step."""

    def __init__(self, fmodel: Any, model: nn.Module, opt: torch.optim.Optimizer, override: Override | None) -> None:
        options = [{name: value for name, value in group.items() if name != "params"} for group in opt.param_groups]
        self.__dict__["_of"] = fmodel, model, opt, override, options

    def step(self, loss: Tensor, params: Any = None, override: Any = None, grad_callback: Any = None) -> Any:
        own = self.__dict__
        if "_of" in own:
            fmodel = own["_of"][0]
            if params is None and override is None and grad_callback is None and took(fmodel, loss, False):
                return Later(fmodel)
            self.compute()
        return DifferentiableSGD.step(self, loss, params, override, grad_callback)

    def compute(self) -> Any:
        fmodel, model, opt, override, options = self.__dict__.pop("_of")
        if "_trace" in fmodel.__dict__:
            fmodel.compute("its optimiser was asked for more than plain steps")
        params = nn.Module.parameters(model)
        plain = get_diff_optim(opt, params, fmodel, None, override, track_higher_grads=fmodel.track_higher_grads)
        for group, before in zip(plain.param_groups, options, strict=True):
            group.update({name: value for name, value in before.items() if name not in (override or ())})
        self.__dict__.update(plain.__dict__)
        object.__setattr__(self, "__class__", DifferentiableSGD)
        return self

    def __getattr__(self, name: str) -> Any:
        if "_of" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.compute(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if "_of" in self.__dict__:
            self.compute()
        setattr(self, name, value)

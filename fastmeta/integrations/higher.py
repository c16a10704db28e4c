"""`innerloop_ctx` of higher 0.2.1 for torch.optim.SGD: inner loops on a copy of a model whose parameters are results.

`fastmeta.MAML` takes all tasks at once, and its memory does not grow with the steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ._steps import containers, copy_of, put, stepped

UNSUPPORTED = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")


@contextmanager
def innerloop_ctx(
    model: nn.Module,
    opt: torch.optim.Optimizer,
    device: torch.device | None = None,
    copy_initial_weights: bool = True,
    override: Mapping[str, Sequence[Any]] | None = None,
    track_higher_grads: bool = True,
) -> Iterator[tuple[Any, DifferentiableSGD]]:
    """(fmodel, diffopt): a copy of `model`, and p - lr g for its parameters by diffopt.step(loss), which gradients go through.

    `opt`: a torch.optim.SGD on parameters of `model`, with nothing but `lr`. `copy_initial_weights`: start from leaves of the copy's
    own (`fmodel.parameters(time=0)`); False: gradients reach those of `model`. `override`: {"lr": rates}, one or one for each
    group of `opt`, which may be learned tensors. `track_higher_grads`: False for evaluation, where every step starts a new graph.
    """

    def start(p: Tensor) -> Tensor:
        fresh = p.detach().clone().requires_grad_(p.requires_grad) if copy_initial_weights else p.clone()
        return fresh if device is None else fresh.to(device)

    fmodel: Any = copy_of(model, start, lambda b: b.detach().clone().to(device or b.device))
    kind: type = type(model)
    fmodel.__class__ = _functional(kind)
    fmodel._track_higher_grads = track_higher_grads
    fmodel._fast_params = [list(nn.Module.parameters(fmodel))]
    yield fmodel, DifferentiableSGD(opt, model, fmodel, override)


class Functional(nn.Module):
    """A model whose parameters are the latest of those that it has had."""

    _fast_params: list[list[Tensor]]
    _track_higher_grads: bool

    def forward(self, *args: Any, params: Iterable[Tensor] | None = None, **kwargs: Any) -> Any:
        if params is not None:
            self.update_params(params)
        return super().forward(*args, **kwargs)

    def parameters(self, recurse: bool = True, time: int | None = None) -> Iterator[Any]:
        """After `time` updates; None: the latest, the only ones where higher gradients are not tracked."""
        if time not in (None, 0, -1) and not self._track_higher_grads:
            raise ValueError(f"parameters: time must be None, 0 or -1 unless track_higher_grads is True, got {time}")
        return iter(self._fast_params[-1 if time is None else time])

    @property
    def fast_params(self) -> list[Tensor]:
        return self._fast_params[-1]

    @property
    def init_fast_params(self) -> list[Tensor]:
        if not self._track_higher_grads:
            raise RuntimeError("init_fast_params: track_higher_grads must be True, got False")
        return self._fast_params[0]

    def update_params(self, params: Iterable[Tensor]) -> None:
        params = list(params)
        put(containers(self), self.fast_params, params)
        if not self._track_higher_grads:
            self._fast_params.clear()
        self._fast_params.append(params)


@functools.lru_cache(maxsize=256)
def _functional(model: type) -> type[nn.Module]:
    return type(f"Functional{model.__name__}", (Functional, model), {})


class DifferentiableSGD:
    """What `innerloop_ctx` makes of a torch.optim.SGD."""

    def __init__(
        self,
        opt: torch.optim.Optimizer,
        model: nn.Module,
        fmodel: Functional,
        override: Mapping[str, Sequence[Any]] | None,
    ) -> None:
        if type(opt) is not torch.optim.SGD:
            raise TypeError(f"innerloop_ctx: opt must be a torch.optim.SGD, got {type(opt).__name__}")
        place = {id(p): i for i, p in enumerate(model.parameters())}
        for group in opt.param_groups:
            if foreign := sum(id(p) not in place for p in group["params"]):
                raise ValueError(f"innerloop_ctx: opt must hold parameters of model, got {foreign} others")
        self._fmodel = fmodel
        self._places = [[place[id(p)] for p in group["params"]] for group in opt.param_groups]
        self.param_groups = [{name: group[name] for name in group if name != "params"} for group in opt.param_groups]
        self._apply(override)

    def _apply(self, override: Mapping[str, Sequence[Any]] | None) -> None:
        for name, values in (override or {}).items():
            if len(values) not in (1, len(self.param_groups)):
                count = len(self.param_groups)
                raise ValueError(f"innerloop_ctx: override[{name!r}] must have 1 or {count} entries, got {len(values)}")
            for i, group in enumerate(self.param_groups):
                group[name] = values[i if len(values) > 1 else 0]
        for group in self.param_groups:
            check_plain("innerloop_ctx", group)

    def step(
        self,
        loss: Tensor,
        params: Iterable[Tensor] | None = None,
        override: Mapping[str, Sequence[Any]] | None = None,
        grad_callback: Callable[[list[Tensor | None]], list[Tensor | None]] | None = None,
    ) -> list[Tensor]:
        """The parameters after a step on `loss`, which are now those of the model; what the loss does not depend on stays.

        `grad_callback`: from the gradients of all parameters to those to be used.
        """
        self._apply(override)
        before = list(self._fmodel.fast_params if params is None else params)
        tracked = self._fmodel._track_higher_grads
        wanted = [p for p in before if p.requires_grad]
        found = iter(torch.autograd.grad(loss, wanted, create_graph=tracked, allow_unused=True))
        grads = [next(found) if p.requires_grad else None for p in before]
        if grad_callback is not None:
            grads = list(grad_callback(grads))
        with torch.set_grad_enabled(tracked):
            after = step_groups(self.param_groups, self._places, before, grads)
        if not tracked:
            after = [p.detach().requires_grad_(was.requires_grad) for p, was in zip(after, before, strict=True)]
        self._fmodel.update_params(after)
        return after


def check_plain(op: str, group: Mapping[str, Any]) -> None:
    """ValueError where SGD is asked to do more than p - lr g."""
    for name in UNSUPPORTED:
        value = group.get(name)
        if isinstance(value, Tensor) or value:
            raise ValueError(f"{op}: SGD must have no option but lr, got {name}={value}")


def step_groups(
    groups: Sequence[Mapping[str, Any]],
    places: Sequence[Sequence[int]],
    params: list[Tensor],
    grads: Sequence[Tensor | None],
) -> list[Tensor]:
    """One step of all groups at once; the parameters of a group are at its `places`."""
    after = list(params)
    chosen = [i for of_group in places for i in of_group]
    rates = [group["lr"] for group, of_group in zip(groups, places, strict=True) for _ in of_group]
    one = len(groups) == 1
    found = stepped([params[i] for i in chosen], [grads[i] for i in chosen], rates[0] if one else rates)
    for i, p in zip(chosen, found, strict=True):
        after[i] = p
    return after

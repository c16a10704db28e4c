"""A copy of a model whose parameters are the latest of those that it has had."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..._torch import BUFFERS, HOOK_ENDINGS, PARAMETERS
from .. import _arguments, _library
from .._steps import Container, copy_of

__all__ = ["monkeypatch"]
__getattr__ = _library.otherwise("higher.patch", __all__)


def monkeypatch(
    module: nn.Module,
    device: torch.device | None = None,
    copy_initial_weights: bool = True,
    track_higher_grads: bool = True,
) -> Any:
    """A copy of `module`, to be called as it is or with `params=`, a list of all its parameters: see `innerloop_ctx`."""
    _arguments.module("monkeypatch", "module", module)
    _arguments.flag("monkeypatch", "copy_initial_weights", copy_initial_weights)
    if isinstance(module, _MonkeyPatchBase):
        raise ValueError(f"monkeypatch: module must be a plain model, got {type(module).__name__}")

    def start(p: Tensor) -> Tensor:
        if not copy_initial_weights:
            return p.clone() if device is None else p.clone().to(device)
        return p.detach().clone().to(device or p.device).requires_grad_(p.requires_grad)

    fmodel: Any = copy_of(module, start, lambda b: b.detach().clone().to(device or b.device))
    kind: type = type(module)
    fmodel.__class__ = _functional(kind)
    for part in fmodel.modules():  # a hook put on the copy is not one of the model
        part.__dict__.update({name: held.copy() for name, held in vars(part).items() if name.endswith(HOOK_ENDINGS)})
    fmodel._places = _places(fmodel)
    fmodel.track_higher_grads = track_higher_grads
    fmodel._fast_params = [list(nn.Module.parameters(fmodel))]
    return fmodel


def _places(module: nn.Module) -> list[list[tuple[Container, str]]]:
    """Where each parameter lies, in the order of parameters(): more than one place where modules share it."""
    found: dict[int, list[tuple[Container, str]]] = {}
    for part in module.modules():
        held: Container = getattr(part, PARAMETERS)
        for name, p in held.items():
            if p is not None:
                found.setdefault(id(p), []).append((held, name))
    return list(found.values())


class _MonkeyPatchBase(nn.Module):
    _fast_params: list[list[Tensor]]
    _places: list[list[tuple[Container, str]]]
    _track_higher_grads: bool

    def forward(self, *args: Any, params: Iterable[Tensor] | None = None, **kwargs: Any) -> Any:
        if params is not None:
            self.update_params(params)
        else:
            self._put(self.fast_params)
        return super().forward(*args, **kwargs)

    def parameters(self, recurse: bool = True, time: int | None = None) -> Iterator[Any]:
        """After `time` updates; None: the latest, the only ones where higher gradients are not tracked."""
        if time not in (None, 0, -1) and not self._track_higher_grads:
            raise ValueError(f"parameters: time must be None, 0 or -1 unless track_higher_grads is True, got {time}")
        return iter(self._fast_params[-1 if time is None else time])

    @property
    def track_higher_grads(self) -> bool:
        return self._track_higher_grads

    @track_higher_grads.setter
    def track_higher_grads(self, value: bool) -> None:
        _arguments.flag("track_higher_grads", "the value", value)
        self._track_higher_grads = value

    @property
    def fast_params(self) -> list[Tensor]:
        return self._fast_params[-1]

    @fast_params.setter
    def fast_params(self, params: Iterable[Tensor]) -> None:
        self.update_params(params)

    @property
    def init_fast_params(self) -> list[Tensor]:
        if not self._track_higher_grads:
            raise RuntimeError("init_fast_params: track_higher_grads must be True, got False")
        return self._fast_params[0]

    def update_params(self, params: Iterable[Tensor]) -> None:
        found = _arguments.listed("update_params", "params", params)
        if len(found) != len(self._places):
            count = len(self._places)
            raise ValueError(
                f"update_params: params must have one entry for each of {count} parameters, got {len(found)}"
            )
        for i, p in enumerate(found):
            _arguments.tensor("update_params", f"params[{i}]", p)
        self._put(found)
        if not self._track_higher_grads:
            self._fast_params.clear()
        self._fast_params.append(found)

    def _put(self, params: list[Tensor]) -> None:
        for p, places in zip(params, self._places, strict=True):
            for container, name in places:
                container[name] = p

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What `to`, `cuda` and `double` do: the latest parameters stay on their graph, which fn is part of."""
        self._fast_params[-1] = [fn(p) for p in self.fast_params]
        self._put(self.fast_params)
        for part in self.modules():
            buffers: Container = getattr(part, BUFFERS)
            buffers.update({name: b if b is None else fn(b) for name, b in buffers.items()})
        return self


@functools.cache
def _functional(model: type) -> type[nn.Module]:
    return type(f"Functional{model.__name__}", (_MonkeyPatchBase, model), {})

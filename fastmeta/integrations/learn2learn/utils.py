"""Modules whose parameters are results of others', and what learn2learn keeps beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _arguments, _library
from .._steps import Module, containers, copy_of, put
from ..recording import computes, realised, updated
from ._recorded_module import recorded_clone

__all__ = [
    "accuracy",
    "clone_module",
    "clone_named_parameters",
    "clone_parameters",
    "detach_module",
    "magic_box",
    "update_module",
]
__getattr__ = _library.otherwise("learn2learn.utils", __all__)
__path__: list[str] = []  # submodules are the library's


def clone_parameters(params: Iterable[Tensor]) -> list[Tensor]:
    """A clone of each, through which gradients reach it."""
    found = _arguments.listed("clone_parameters", "params", params)
    for i, p in enumerate(found):
        _arguments.tensor("clone_parameters", f"params[{i}]", p)
    return [p.clone() for p in found]


def clone_named_parameters(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    _arguments.mapping("clone_named_parameters", "params", params)
    return dict(zip(params, clone_parameters(params.values()), strict=True))


def clone_module(module: Module, memo: dict[Any, Tensor] | None = None) -> Module:
    """`module` with clones of its parameters, through which gradients reach the originals; buffers that need none are shared.
    `memo`: one dict for the clones of several modules, so that what these share is shared again."""
    _arguments.module("clone_module", "module", module)
    found: Module | None = recorded_clone(module) if memo is None else None
    return copied(module, memo) if found is None else found


def copied(module: Module, memo: dict[Any, Tensor] | None = None) -> Module:
    """The clone, computed at once."""
    computes(module)
    return copy_of(module, Tensor.clone, lambda b: b.clone() if b.requires_grad else b, memo)


def update_module(
    module: Module, updates: Sequence[Tensor | None] | None = None, memo: dict[Tensor, Tensor] | None = None
) -> Module:
    """p + u for every parameter, in `module` itself, which is returned. None: what lies in the attributes `update`, where those of
    the buffers always lie. `memo`: one dict for several modules, so that what these share is updated once."""
    op = "update_module"
    _arguments.module(op, "module", module)
    if updates is not None and memo is None and updated(module, updates, -1):
        return module
    computes(module)
    params, buffers = list(module.parameters()), list(module.buffers())
    if updates is None:
        found = [vars(t).pop("update", None) for t in (*params, *buffers)]
    else:
        found = realised(_arguments.like_params(op, "updates", updates, params))
        found += [vars(t).pop("update", None) for t in buffers]
    memo = {} if memo is None else memo
    for tensor, update in zip((*params, *buffers), found, strict=True):
        if update is not None and tensor not in memo:
            memo[tensor] = tensor + update
    put(containers(module), memo.keys(), memo.values())
    return module


def detach_module(module: nn.Module, keep_requires_grad: bool = False) -> None:
    """Cut the parameters, and buffers that need gradients, from their graph, in place."""
    _arguments.module("detach_module", "module", module)
    computes(module)
    for tensor in (*module.parameters(), *(b for b in module.buffers() if b.requires_grad)):
        needed = tensor.requires_grad
        tensor.detach_().requires_grad_(needed and keep_requires_grad)


def magic_box(x: Any) -> Any:
    """1, with the gradient of x (the DiCE operator); what is no tensor stays."""
    return torch.exp(x - x.detach()) if isinstance(x, Tensor) else x


def accuracy(preds: Tensor, targets: Tensor) -> Tensor:
    """The part of the predictions [n, N] whose largest score is that of the target [n]."""
    _arguments.tensor("accuracy", "preds", preds)
    _arguments.tensor("accuracy", "targets", targets)
    if preds.ndim != 2 or targets.shape != preds.shape[:1]:
        came = f"{list(preds.shape)} and {list(targets.shape)}"
        raise ValueError(f"accuracy: preds and targets must have the shapes [n, N] and [n], got {came}")
    return (preds.argmax(dim=1) == targets.long()).sum().float() / preds.size(0)

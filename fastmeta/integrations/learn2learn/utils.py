"""Modules whose parameters are results of others'."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from torch import Tensor, nn

from .._steps import copy_of, take_step

Module = TypeVar("Module", bound=nn.Module)


def clone_parameters(params: Iterable[Tensor]) -> list[Tensor]:
    return [p.clone() for p in params]


def clone_module(module: Module) -> Module:
    """`module` with clones of its parameters, through which gradients reach the originals; buffers that need none are shared."""
    return copy_of(module, Tensor.clone, lambda b: b.clone() if b.requires_grad else b)


def update_module(module: Module, updates: Sequence[Tensor | None] | None = None) -> Module:
    """p + u for every parameter, in `module` itself, which is returned. None: what lies in the attributes `update`."""
    tensors: list[Tensor] = list(module.parameters())
    if updates is None:
        tensors += module.buffers()
        updates = [vars(t).pop("update", None) for t in tensors]
    check_lengths("update_module", "updates", updates, tensors)
    take_step(module, tensors, updates, -1.0)
    return module


def detach_module(module: nn.Module, keep_requires_grad: bool = False) -> None:
    """Cut the parameters, and buffers that need gradients, from their graph, in place."""
    for tensor in (*module.parameters(), *(b for b in module.buffers() if b.requires_grad)):
        needed = tensor.requires_grad
        tensor.detach_().requires_grad_(needed and keep_requires_grad)


def check_lengths(op: str, name: str, given: Sequence, params: Sequence) -> None:
    if len(given) != len(params):
        raise ValueError(f"{op}: {name} must have one entry for each of the {len(params)} parameters, got {len(given)}")

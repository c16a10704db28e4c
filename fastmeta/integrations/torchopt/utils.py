"""States of a module or an optimiser: kept, put back, cut from their graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..._torch import BUFFERS, PARAMETERS, tree_map_only
from .. import _library
from ._recorded import listener_of
from .optim import MetaOptimizer, parts_of

__all__ = [
    "ModuleState",
    "extract_state_dict",
    "module_clone",
    "module_detach_",
    "recover_state_dict",
    "stop_gradient",
]
__getattr__ = _library.otherwise("torchopt.utils", __all__)

BY = {
    "reference": "reference", "ref": "reference", "copy": "copy", "clone": "copy",
    "deepcopy": "deepcopy", "deepclone": "deepcopy",
}  # fmt: skip


class ModuleState(NamedTuple):
    """The parameters and buffers of a module and its submodules, in the order of modules(): those that have any."""

    params: tuple[dict[str, Tensor], ...]
    buffers: tuple[dict[str, Tensor], ...]
    visual_contents: None = None
    detach_buffers: bool = False


def extract_state_dict(
    target: nn.Module | MetaOptimizer,
    *,
    by: str = "reference",
    device: torch.device | str | None = None,
    with_buffers: bool = True,
    detach_buffers: bool = False,
) -> Any:
    """The state of a module or of an optimiser. `by`: "reference", the tensors themselves; "copy", clones, which gradients go
    through; "deepcopy", leaves of their own. What was shared is shared again. `detach_buffers`: buffers are leaves of their own in
    any case, now and when they are put back."""
    _target("extract_state_dict", target)
    kept = _once(_kept("extract_state_dict", by, device))
    if isinstance(target, MetaOptimizer):
        return tree_map_only(Tensor, kept, target.state_dict())
    of_buffer = _once(lambda b: _leaf(b, device)) if detach_buffers else kept
    buffers = _held(target, BUFFERS, of_buffer) if with_buffers else ()
    return ModuleState(_held(target, PARAMETERS, kept), buffers, None, detach_buffers)


def recover_state_dict(target: nn.Module | MetaOptimizer, state: Any) -> None:
    """Put an extracted state back: the tensors of the target are exchanged, not changed."""
    _target("recover_state_dict", target)
    if isinstance(target, MetaOptimizer):
        return target.load_state_dict(state)
    if not isinstance(state, ModuleState):
        raise TypeError(f"recover_state_dict: state must be that of a module, got {type(state).__name__}")
    listener = listener_of(target)
    put_back = listener is not None and listener.put_back(state)
    buffers = tree_map_only(Tensor, _once(_leaf), state.buffers) if state.detach_buffers else state.buffers
    for kind, kept in ((PARAMETERS, () if put_back else state.params), (BUFFERS, buffers)):
        if not kept:  # they were not extracted
            continue
        parts = parts_of(target, kind)
        if len(kept) != len(parts):
            raise ValueError(
                f"recover_state_dict: target must have {len(kept)} submodules with {kind[1:]}, got {len(parts)}"
            )
        for held, tensors in zip(parts, kept, strict=True):
            held.update(tensors)
    return None


def stop_gradient(target: Any) -> None:
    """Cut the parameters of a module, a state, or any tree of tensors from their graph, in place."""
    tree = list(target.parameters()) if isinstance(target, nn.Module) else target
    tree = target.state_dict() if isinstance(target, MetaOptimizer) else tree
    tree_map_only(Tensor, _cut, tree)


def module_clone(
    target: Any, *, by: str = "reference", detach_buffers: bool = False, device: torch.device | str | None = None
) -> Any:
    """A copy of a module, or of a tree of tensors, with the tensors that `extract_state_dict` finds."""
    if isinstance(target, MetaOptimizer):
        raise NotImplementedError("module_clone: target must be a module or a tree of tensors, got an optimiser")
    if not isinstance(target, nn.Module):
        return tree_map_only(Tensor, _once(_kept("module_clone", by, device)), target)
    tensors = [t for kind in (PARAMETERS, BUFFERS) for held in parts_of(target, kind) for t in held.values()]
    cloned = copy.deepcopy(target, {id(t): t for t in tensors})
    recover_state_dict(cloned, extract_state_dict(target, by=by, device=device, detach_buffers=detach_buffers))
    return cloned


def module_detach_(target: Any) -> Any:
    """`stop_gradient`, and the target again."""
    stop_gradient(target)
    return target


def _target(op: str, target: Any) -> None:
    if not isinstance(target, nn.Module | MetaOptimizer):
        raise TypeError(f"{op}: target must be a module or an optimiser of torchopt here, got {type(target).__name__}")


def _kept(op: str, by: str, device: torch.device | str | None) -> Callable[[Tensor], Tensor]:
    if by not in BY:
        raise ValueError(f"{op}: by must be 'reference', 'copy' or 'deepcopy', got {by!r}")
    kind = BY[by]
    if kind == "deepcopy":
        return lambda t: _leaf(t, device)

    def kept(t: Tensor) -> Tensor:
        found = t if kind == "reference" else t.clone()
        return found if device is None else found.to(device)

    return kept


def _once(of: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`of`, which for the same tensor gives the same again."""
    made: dict[int, Tensor] = {}

    def found(t: Tensor) -> Tensor:
        if id(t) not in made:
            made[id(t)] = of(t)
        return made[id(t)]

    return found


def _held(module: nn.Module, kind: str, of: Callable[[Tensor], Tensor]) -> tuple[dict[str, Tensor], ...]:
    return tuple({name: of(t) for name, t in held.items() if isinstance(t, Tensor)} for held in parts_of(module, kind))


def _cut(t: Tensor) -> Tensor:
    needed = t.requires_grad
    return t.detach_().requires_grad_(needed)


def _leaf(t: Tensor, device: torch.device | str | None = None) -> Tensor:
    leaf = t.detach().clone().to(device or t.device)
    return nn.Parameter(leaf, t.requires_grad) if isinstance(t, nn.Parameter) else leaf.requires_grad_(t.requires_grad)

"""The names of TorchOpt 0.7.3 that an explicit-gradient MAML program calls: MetaSGD, and states of a module kept and put back.

`fastmeta.MAML` takes all tasks at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ._steps import Container, put, stepped

BY = {
    "reference": "reference", "ref": "reference", "copy": "copy", "clone": "copy",
    "deepcopy": "deepcopy", "deepclone": "deepcopy",
}  # fmt: skip


class ModuleState(NamedTuple):
    """The parameters and buffers of a module and its submodules, in the order of modules(): those that have any."""

    params: tuple[dict[str, Tensor], ...]
    buffers: tuple[dict[str, Tensor], ...]
    detach_buffers: bool = False


class MetaSGD:
    """p - lr g for the parameters of `module`, in the module itself, by `step(loss)`; gradients go through the steps.

    `lr`: a number or a tensor with one element. What else TorchOpt's class takes must keep its default.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float | Tensor,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        moment_requires_grad: bool = True,
        maximize: bool = False,
    ) -> None:
        refused = plain_rate_reason(lr, momentum, weight_decay, dampening, nesterov, maximize)
        if refused:
            raise ValueError(f"MetaSGD: {refused}")
        self.lr, self.modules = lr, [module]

    def step(self, loss: Tensor) -> None:
        for module in self.modules:
            step_on(_containers(module, "_parameters"), loss, self.lr)

    def add_param_group(self, module: nn.Module) -> None:
        self.modules.append(module)

    def state_dict(self) -> tuple[tuple[()], ...]:
        """Empty: SGD without momentum has no state."""
        return ((),) * len(self.modules)

    def load_state_dict(self, state_dict: Sequence[Any]) -> None:
        if len(state_dict) != len(self.modules):
            raise ValueError(f"MetaSGD: state_dict must have {len(self.modules)} entries, got {len(state_dict)}")


def plain_rate_reason(
    lr: Any, momentum: float, weight_decay: float, dampening: float, nesterov: bool, maximize: bool
) -> str | None:
    """Why these options are more than p - lr g; None where they are not."""
    options = {"momentum": momentum, "weight_decay": weight_decay, "dampening": dampening, "nesterov": nesterov}
    if callable(lr):
        return "lr must be a number or a tensor, got a schedule"
    if not lr >= 0:
        return f"lr must not be negative, got {lr}"
    changed = [f"{name}={value}" for name, value in (options | {"maximize": maximize}).items() if value]
    return f"SGD must have no option but lr, got {', '.join(changed)}" if changed else None


def step_on(containers: Sequence[Container], loss: Tensor, lr: float | Tensor) -> None:
    """One differentiable step of the parameters that are held there; those that the loss does not depend on stay."""
    held = {id(p): p for of_part in containers for p in of_part.values() if p is not None and p.requires_grad}
    params = list(held.values())
    grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    put(containers, params, stepped(params, grads, lr))


def extract_state_dict(
    target: nn.Module | MetaSGD,
    *,
    by: str = "reference",
    device: torch.device | str | None = None,
    with_buffers: bool = True,
    detach_buffers: bool = False,
) -> Any:
    """The state of a module or of an optimiser. `by`: "reference", the tensors themselves; "copy", clones, which gradients go
    through; "deepcopy", leaves of their own. `detach_buffers`: buffers are leaves of their own in any case, now and when they are
    put back."""
    if by not in BY:
        raise ValueError(f"extract_state_dict: by must be 'reference', 'copy' or 'deepcopy', got {by!r}")
    if isinstance(target, MetaSGD):
        return target.state_dict()
    kind = BY[by]

    def kept(t: Tensor) -> Tensor:
        found = t if kind == "reference" else t.clone() if kind == "copy" else _leaf(t)
        return found if device is None else found.to(device)

    buffers = _held(target, "_buffers", _leaf if detach_buffers else kept) if with_buffers else ()
    return ModuleState(_held(target, "_parameters", kept), buffers, detach_buffers)


def recover_state_dict(target: nn.Module | MetaSGD, state: Any) -> None:
    """Put an extracted state back: the tensors of the target are exchanged, not changed."""
    if isinstance(target, MetaSGD):
        return target.load_state_dict(state)
    buffers = tree_map_only(Tensor, _leaf, state.buffers) if state.detach_buffers else state.buffers
    for kind, kept in (("_parameters", state.params), ("_buffers", buffers)):
        for held, tensors in zip(_containers(target, kind), kept, strict=bool(kept)):
            held.update(tensors)
    return None


def stop_gradient(target: Any) -> None:
    """Cut the parameters of a module, a state, or any tree of tensors from their graph, in place."""
    tree = list(target.parameters()) if isinstance(target, nn.Module) else target
    tree = target.state_dict() if isinstance(target, MetaSGD) else tree
    tree_map_only(Tensor, _cut, tree)


def _containers(module: nn.Module, kind: str) -> list[Container]:
    return [held for part in module.modules() if (held := getattr(part, kind))]


def _held(module: nn.Module, kind: str, of: Callable[[Tensor], Tensor]) -> tuple[dict[str, Tensor], ...]:
    return tuple(
        {name: of(t) for name, t in held.items() if isinstance(t, Tensor)} for held in _containers(module, kind)
    )


def _cut(t: Tensor) -> Tensor:
    needed = t.requires_grad
    return t.detach_().requires_grad_(needed)


def _leaf(t: Tensor) -> Tensor:
    leaf = t.detach().clone()
    return nn.Parameter(leaf, t.requires_grad) if isinstance(t, nn.Parameter) else leaf.requires_grad_(t.requires_grad)

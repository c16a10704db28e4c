"""Which differentiable optimiser is made of an optimiser, and options of one that are learned."""

from __future__ import annotations

import contextlib
import functools
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..._torch import tree_leaves, tree_map
from .. import _arguments, _library
from ._optimisers import (
    DifferentiableAdam,
    DifferentiableAdamW,
    DifferentiableOptimizer,
    DifferentiableSGD,
    GradCallback,
    Override,
)
from .patch import _MonkeyPatchBase

__all__ = [
    "DifferentiableAdam",
    "DifferentiableAdamW",
    "DifferentiableOptimizer",
    "DifferentiableSGD",
    "apply_trainable_opt_params",
    "create_diff_optim",
    "get_diff_optim",
    "get_trainable_opt_params",
    "register_optim",
]
_of_library = _library.otherwise("higher.optim", __all__)

_made_of: dict[type, type[DifferentiableOptimizer]] = {
    torch.optim.SGD: DifferentiableSGD,
    torch.optim.Adam: DifferentiableAdam,
    torch.optim.AdamW: DifferentiableAdamW,
}


def __getattr__(name: str) -> Any:
    found = _of_library(name)
    return _adopted(found) if name.startswith("Differentiable") else found


@functools.cache
def _adopted(kind: Any) -> type[DifferentiableOptimizer]:
    """An optimiser of higher's own: its step, on what `DifferentiableOptimizer` keeps."""
    own = {"_update": kind._update, "unsupported": ("maximize",), "__doc__": kind.__doc__}
    return type(kind.__name__, (DifferentiableOptimizer,), own)


def get_diff_optim(
    opt: torch.optim.Optimizer,
    reference_params: Iterable[Tensor],
    fmodel: Any = None,
    device: torch.device | None = None,
    override: Override | None = None,
    track_higher_grads: bool = True,
    grad_callback: GradCallback | None = None,
) -> DifferentiableOptimizer:
    """A `DifferentiableOptimizer` of `opt`, whose parameters are among `reference_params`, for the parameters of `fmodel`, or for
    those that `step` is given."""
    kind = _kind("innerloop_ctx", type(opt))
    if fmodel is not None and not isinstance(fmodel, _MonkeyPatchBase):
        raise TypeError(f"innerloop_ctx: fmodel must be what monkeypatch returns, got {type(fmodel).__name__}")
    return kind(opt, reference_params, fmodel, device, override, grad_callback, track_higher_grads)


def create_diff_optim(
    opt_type: type[torch.optim.Optimizer],
    opt_kwargs: Mapping[str, Any] | None = None,
    params: Iterable[Any] | None = None,
    fmodel: Any = None,
    device: torch.device | None = None,
    override: Override | None = None,
    track_higher_grads: bool = True,
    grad_callback: GradCallback | None = None,
) -> DifferentiableOptimizer:
    """`get_diff_optim` of a new optimiser `opt_type(..., **opt_kwargs)` for the parameters of `fmodel`, or for tensors like
    `params`, which may be a list of groups."""
    kind = _kind("create_diff_optim", opt_type)
    if params is None and fmodel is None:
        raise ValueError("create_diff_optim: fmodel or params must be given, got none")
    op, stand_ins = "create_diff_optim", list[Tensor]()
    opt_kwargs = {} if opt_kwargs is None else opt_kwargs
    _arguments.mapping(op, "opt_kwargs", opt_kwargs)

    def like(p: Any) -> Tensor:
        _arguments.tensor(op, "an entry of params", p)
        stand_ins.append(torch.zeros_like(p, requires_grad=True))
        return stand_ins[-1]

    given = _arguments.listed(op, "params", fmodel.parameters() if params is None else params)
    if not given:
        raise ValueError(f"{op}: params must hold at least one tensor, got none")
    groups: Any = [
        g | {"params": [like(p) for p in _arguments.listed(op, "params", g["params"])]}
        if isinstance(g, dict)
        else like(g)
        for g in given
    ]
    opt = opt_type(groups, **opt_kwargs)
    return kind(opt, stand_ins, fmodel, device, override, grad_callback, track_higher_grads)


def get_trainable_opt_params(opt: torch.optim.Optimizer, device: torch.device | None = None) -> dict[str, list[Any]]:
    """An `override` with a learned scalar for every number among the options of each group; options that hold anything else, and
    True and False, are left out."""
    _arguments.optimiser("get_trainable_opt_params", "opt", opt)
    found: dict[str, list[Any]] = {}
    for group in opt.param_groups:
        for name, value in group.items():
            if name != "params" and all(map(_is_number, tree_leaves(value))):
                learned = tree_map(lambda x: torch.tensor(float(x), device=device, requires_grad=True), value)
                found.setdefault(name, []).append(learned)
    return found


def apply_trainable_opt_params(opt: torch.optim.Optimizer, override: Override) -> None:
    """The numbers that the tensors of `override` have now become the options of the groups of `opt`; where an option was an int, a
    whole number stays one."""
    op = "apply_trainable_opt_params"
    _arguments.optimiser(op, "opt", opt)
    _arguments.mapping(op, "override", override)
    for name, values in override.items():
        values = _arguments.listed(op, f"override[{name!r}]", values)
        if len(values) not in (1, len(opt.param_groups)):
            count = len(opt.param_groups)
            words = f"override[{name!r}] must have 1 or {count} entries"
            raise ValueError(f"{op}: {words}, got {len(values)}")
        for i, group in enumerate(opt.param_groups):
            group[name] = tree_map(functools.partial(_number, group.get(name)), values[i if len(values) > 1 else 0])


def register_optim(optim_type: type[torch.optim.Optimizer], diff_optim_type: type[DifferentiableOptimizer]) -> None:
    """From now on `innerloop_ctx` makes a `diff_optim_type` of an optimiser of this type."""
    if not (isinstance(diff_optim_type, type) and issubclass(diff_optim_type, DifferentiableOptimizer)):
        raise TypeError(f"register_optim: diff_optim_type must be a DifferentiableOptimizer, got {diff_optim_type!r}")
    if not isinstance(optim_type, type):
        raise TypeError(f"register_optim: optim_type must be a class, got {type(optim_type).__name__}")
    _made_of[optim_type] = diff_optim_type


def _kind(op: str, opt_type: Any) -> type[DifferentiableOptimizer]:
    if isinstance(opt_type, type) and opt_type not in _made_of:
        name = opt_type.__name__
        if opt_type in vars(torch.optim).values():
            with contextlib.suppress(AttributeError):  # no such optimiser in higher, or no higher
                _made_of[opt_type] = __getattr__(f"Differentiable{name}")
    if not isinstance(opt_type, type) or opt_type not in _made_of:
        words = "opt must be a torch.optim.SGD, Adam or AdamW, one that an installed higher knows, or registered"
        raise TypeError(f"{op}: {words}, got {getattr(opt_type, '__name__', opt_type)}")
    return _made_of[opt_type]


def _number(before: Any, learned: Any) -> Any:
    found = learned.item() if isinstance(learned, Tensor) else learned
    whole = type(before) is int and isinstance(found, float) and found.is_integer()
    return int(found) if whole else found


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)

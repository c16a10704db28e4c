from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, overload

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..types import Rate

CORES = ((None,), (None,), (None,))  # no fixed ranks: torch.vmap goes through the reference, two elementwise passes
Param = TypeVar("Param", bound=Tensor)


@overload
def sgd_step(params: Tensor, grads: Tensor, lr: Rate) -> Tensor: ...
@overload
def sgd_step(params: list[Param], grads: Sequence[Tensor], lr: Rate) -> list[Tensor]: ...
@overload
def sgd_step(params: tuple[Tensor, ...], grads: Sequence[Tensor], lr: Rate) -> tuple[Tensor, ...]: ...
@overload
def sgd_step(params: Sequence[Tensor], grads: Sequence[Tensor], lr: Rate) -> Sequence[Tensor]: ...
@overload
def sgd_step(params: Mapping[str, Tensor], grads: Mapping[str, Tensor], lr: Rate) -> dict[str, Tensor]: ...
def sgd_step(params: Any, grads: Any, lr: Rate) -> Any:
    r"""theta' = theta - alpha * g, elementwise, for one tensor or a whole list or dict of them in one launch.

    `params` and `grads`: tensors of one shape, sequences, or dicts with the same keys. A parameter may lack the leading task
    axis of its gradient; all tasks then share it: param `[*shape]`, grad `[T, *shape]` -> `[T, *shape]`.
    `lr`: the rates, of any sign. One for all is a number or a 0-dim tensor. In the structure of `params`, each tensor has its
    own: a number, a 0-dim tensor, or one rate per element (Meta-SGD), `[*shape]` or `[T, *shape]`.

    Differentiable in params, grads and rates, to any order. dtypes: float32, float64, float16 or bfloat16, one for all.

    Errors: TypeError for a wrong dtype or what is not a tensor; ValueError for wrong shapes, devices and values, and for a rate
    that is NaN or infinite. Tensors of rates on CUDA and under transforms are not looked at: what such a rate touches is NaN.

    Kernels: Triton (CUDA), native CPU. Sources: Finn et al. 2017, arXiv:1703.03400, eq. 1; Li et al. 2017,
    arXiv:1707.09835, eq. 2.

    ```python
    import torch
    import fastmeta

    params = {"weight": torch.randn(5, 64), "bias": torch.zeros(5)}  # shared
    grads = {"weight": torch.randn(32, 5, 64), "bias": torch.randn(32, 5)}
    params = fastmeta.sgd_step(params, grads, 0.01)  # of each of 32 tasks
    ```
    """
    return _any_tree("sgd_step", params, grads, lr)


def _any_tree(op: str, params: Any, grads: Any, lr: Any) -> Any:
    if isinstance(params, Tensor):
        return _step(op, ["params"], [params], [grads], [lr])[0]
    if isinstance(params, Mapping):
        _same_keys(op, "grads", params, grads)
        names = list(params)
        rates = lr
        if isinstance(lr, Mapping):
            _same_keys(op, "lr", params, lr)
            rates = [lr[n] for n in names]
        stepped = _step(op, names, [params[n] for n in names], [grads[n] for n in names], _rates(op, rates, names))
        return dict(zip(names, stepped, strict=True))
    if not isinstance(params, list | tuple):
        raise TypeError(f"{op}: params must be a tensor, a sequence or a dict of tensors, got {type(params).__name__}")
    if not isinstance(grads, list | tuple) or len(grads) != len(params):
        came = len(grads) if isinstance(grads, list | tuple) else type(grads).__name__
        raise ValueError(f"{op}: grads must be a sequence of {len(params)} tensors like params, got {came}")
    names = [f"params[{i}]" for i in range(len(params))]
    stepped = _step(op, names, list(params), list(grads), _rates(op, lr, names))
    return tuple(stepped) if isinstance(params, tuple) else stepped


def _same_keys(op: str, name: str, params: Mapping[str, Any], other: Any) -> None:
    if not isinstance(other, Mapping) or (list(other) != list(params) and set(other) != set(params)):
        came = list(other) if isinstance(other, Mapping) else type(other).__name__
        raise ValueError(f"{op}: {name} must be a dict with the keys of params, {list(params)}, got {came}")


def _rates(op: str, lr: Any, names: Sequence[str]) -> list[Any]:
    """One rate for all as a list of length 1, else one for each tensor."""
    if not isinstance(lr, list | tuple):
        if isinstance(lr, Tensor):
            _check.dense(op, "lr", lr)
            if lr.ndim:
                raise ValueError(
                    f"{op}: one lr for all must be a number or a 0-dim tensor, got shape {_check.shape(lr)}"
                )
        return [lr]
    if len(lr) != len(names):
        raise ValueError(f"{op}: lr must have one entry for each of the {len(names)} params, got {len(lr)}")
    return list(lr)


def _step(op: str, names: Sequence[str], params: list[Tensor], grads: list[Tensor], rates: list[Any]) -> list[Tensor]:
    rates = [r if isinstance(r, Tensor) else _check.rate(op, "lr", r) for r in rates]
    if not params:
        return []
    found = direct(op, (params, grads, rates), (), CORES)
    if found is not None:
        return list(found)
    for i, (name, p, g) in enumerate(zip(names, params, grads, strict=True)):
        rate = rates[0 if len(rates) == 1 else i]
        _check.floating(op, **{name: p, f"the gradient of {name}": g})
        _check.floating(op, **{names[0]: params[0], name: p})
        if p.shape != g.shape and p.shape != g.shape[1:]:
            raise ValueError(
                f"{op}: the gradient of {name} must have its shape {_check.shape(p)}, with or without a task axis in front, "
                f"got {_check.shape(g)}"
            )
        if isinstance(rate, Tensor):
            _check.floating(op, **{name: p, f"the rate of {name}": rate})
            if rate.ndim and rate.shape not in (g.shape, g.shape[1:]):
                raise ValueError(
                    f"{op}: the rate of {name} must be 0-dim or have the shape {_check.shape(g)} with or without the task "
                    f"axis, got {_check.shape(rate)}"
                )
            _check.rate(op, f"the rate of {name}", rate)
    return list(call(op, (params, grads, rates), (), CORES))

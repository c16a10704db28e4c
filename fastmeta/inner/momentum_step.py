from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, overload

from torch import Tensor

from .. import _check
from ..types import Rate
from ._optimiser_step import over_tree, stateful

Param = TypeVar("Param", bound=Tensor)


@overload
def momentum_step(
    params: Tensor,
    grads: Tensor,
    velocities: Tensor,
    lr: Rate,
    *,
    momentum: float | Tensor,
    weight_decay: float | Tensor = ...,
    nesterov: bool = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def momentum_step(
    params: list[Param],
    grads: Sequence[Tensor],
    velocities: Sequence[Tensor],
    lr: Rate,
    *,
    momentum: float | Tensor,
    weight_decay: float | Tensor = ...,
    nesterov: bool = ...,
) -> tuple[list[Tensor], list[Tensor]]: ...
@overload
def momentum_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    velocities: Sequence[Tensor],
    lr: Rate,
    *,
    momentum: float | Tensor,
    weight_decay: float | Tensor = ...,
    nesterov: bool = ...,
) -> tuple[Sequence[Tensor], Sequence[Tensor]]: ...
@overload
def momentum_step(
    params: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    velocities: Mapping[str, Tensor],
    lr: Rate,
    *,
    momentum: float | Tensor,
    weight_decay: float | Tensor = ...,
    nesterov: bool = ...,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]: ...
def momentum_step(
    params: Any,
    grads: Any,
    velocities: Any,
    lr: Rate,
    *,
    momentum: float | Tensor,
    weight_decay: float | Tensor = 0.0,
    nesterov: bool = False,
) -> Any:
    r"""A step of SGD with momentum, elementwise, for one tensor or a whole list or dict of them in one launch:

        g <- g + weight_decay theta
        b' = momentum b + g
        theta' = theta - lr b'

    with g + momentum b' in place of the last b' if `nesterov`. Returns (theta', b'), each in the structure of `params`.

    `params`, `grads`, `lr`: as in `fastmeta.sgd_step`. `velocities`: b, each with the shape of its gradient or of its parameter;
    zeros before the first step. `momentum`, `weight_decay`: a number or a 0-dim tensor; where one is a tensor, the PyTorch reference
    runs.

    Differentiable in every tensor, to any order. dtypes: one for all, float32, float64, float16 or bfloat16; beside parameters in
    half precision the other tensors may be float32. Computed in float32 or float64; a velocity keeps its dtype.

    Errors: TypeError for a wrong dtype or what is not a tensor; ValueError for wrong shapes, devices and values, for a rate
    that is NaN or infinite, and for `nesterov` with a momentum of 0.

    Kernels: Triton (CUDA), native CPU. Sources: Polyak 1964; Sutskever et al. 2013, "On the importance of initialization and momentum in
    deep learning"; the formulas of torch.optim.SGD.

    ```python
    import torch
    import fastmeta

    params = torch.randn(5, 64)  # one start for 32 tasks
    grads = torch.randn(32, 5, 64)
    b = torch.zeros_like(grads)
    params, b = fastmeta.momentum_step(
        params, grads, b, 0.01, momentum=0.9
    )
    ```
    """
    op = "momentum_step"
    values = {
        "momentum": _check.rate(op, "momentum", momentum),
        "weight_decay": _check.rate(op, "weight_decay", weight_decay),
    }
    nesterov = _check.flag(op, "nesterov", nesterov)
    if nesterov and isinstance(values["momentum"], float) and values["momentum"] == 0:
        raise ValueError(f"{op}: momentum must not be 0 with nesterov, got 0.0")

    def step(names: Any, params: Any, grads: Any, velocities: Any, rates: Any) -> list[list[Tensor]]:
        return stateful(op, names, (params, grads, velocities), rates, (), values, (nesterov,))

    return tuple(over_tree(op, step, params, {"grads": grads, "velocities": velocities}, lr))

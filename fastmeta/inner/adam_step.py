from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, overload

from torch import Tensor

from .. import _check
from ..types import Rate
from ._optimiser_step import over_tree, stateful

Param = TypeVar("Param", bound=Tensor)


@overload
def adam_step(
    params: Tensor,
    grads: Tensor,
    means: Tensor,
    squares: Tensor,
    lr: Rate,
    *,
    step: int,
    betas: tuple[float | Tensor, float | Tensor] = ...,
    eps: float = ...,
    weight_decay: float | Tensor = ...,
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def adam_step(
    params: list[Param],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    lr: Rate,
    *,
    step: int,
    betas: tuple[float | Tensor, float | Tensor] = ...,
    eps: float = ...,
    weight_decay: float | Tensor = ...,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]: ...
@overload
def adam_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    lr: Rate,
    *,
    step: int,
    betas: tuple[float | Tensor, float | Tensor] = ...,
    eps: float = ...,
    weight_decay: float | Tensor = ...,
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]: ...
@overload
def adam_step(
    params: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    means: Mapping[str, Tensor],
    squares: Mapping[str, Tensor],
    lr: Rate,
    *,
    step: int,
    betas: tuple[float | Tensor, float | Tensor] = ...,
    eps: float = ...,
    weight_decay: float | Tensor = ...,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]: ...
def adam_step(
    params: Any,
    grads: Any,
    means: Any,
    squares: Any,
    lr: Rate,
    *,
    step: int,
    betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | Tensor = 0.0,
) -> Any:
    r"""Step number `step` of Adam, the first being 1, elementwise, for one tensor or a whole list or dict of them in one launch:

        g <- g + weight_decay theta
        m' = beta1 m + (1 - beta1) g
        v' = beta2 v + (1 - beta2) g^2
        mean = m' / (1 - beta1^step)
        root = sqrt(v' / (1 - beta2^step))
        theta' = theta - lr mean / (root + eps)

    Returns (theta', m', v'), each in the structure of `params`.

    `params`, `grads`, `lr`: as in `fastmeta.sgd_step`. `means`, `squares`: m and v, each with the shape of its gradient or of its
    parameter; zeros before the first step. `betas`, `weight_decay`: numbers or 0-dim tensors; where one is a tensor, the PyTorch
    reference runs. `eps`: a positive number.

    Differentiable in every tensor, to any order. Where v' is 0, so is the derivative of its root: the limit of that of theta' as the
    gradient goes to 0, and never NaN. dtypes: one for all, float32, float64, float16 or bfloat16; beside parameters in half precision
    the other tensors may be float32, as m and v should. Computed in float32 or float64; the state keeps its dtype.

    Errors: TypeError for a wrong dtype or what is not a tensor; ValueError for wrong shapes, devices and values, and for a rate
    that is NaN or infinite.

    Kernels: Triton (CUDA), native CPU. Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1; the formulas of torch.optim.Adam.

    ```python
    import torch
    import fastmeta

    params = torch.randn(5, 64)  # one start for 32 tasks
    grads = torch.randn(32, 5, 64)
    m = v = torch.zeros_like(grads)
    params, m, v = fastmeta.adam_step(
        params, grads, m, v, 0.01, step=1
    )
    ```
    """
    op = "adam_step"
    if not isinstance(betas, list | tuple) or len(betas) != 2:
        raise ValueError(f"{op}: betas must be two, got {_check.brief(betas)}")
    values = {f"betas[{i}]": _check.rate(op, f"betas[{i}]", beta) for i, beta in enumerate(betas)}
    for name, beta in values.items():
        if isinstance(beta, float) and not 0 <= beta < 1:
            raise ValueError(f"{op}: {name} must be in [0, 1), got {beta}")
    values["weight_decay"] = _check.rate(op, "weight_decay", weight_decay)
    eps = _check.number(op, "eps", eps)
    if not 0 < eps < _check.INFINITY:
        raise ValueError(f"{op}: eps must be a positive number, got {eps}")
    count = (float(_check.integer(op, "step", step, 1, 2**53)),)

    def run(names: Any, params: Any, grads: Any, means: Any, squares: Any, rates: Any) -> list[list[Tensor]]:
        return stateful(op, names, (params, grads, means, squares), rates, count, values, (eps,))

    return tuple(over_tree(op, run, params, {"grads": grads, "means": means, "squares": squares}, lr))

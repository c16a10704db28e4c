from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _check
from ..types import Rate
from ._optimiser_step import over_tree, stateful


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

        g <- g + weight_decay theta,  m' = beta1 m + (1 - beta1) g,  v' = beta2 v + (1 - beta2) g^2
        theta' = theta - lr m' / (1 - beta1^step) / (sqrt(v' / (1 - beta2^step)) + eps)

    Returns (theta', m', v'), each in the structure of `params`.

    `params`, `grads`, `lr`: as in `fastmeta.sgd_step`. `means`, `squares`: m and v, each with the shape of its gradient or of its
    parameter; zeros before the first step. `betas`, `weight_decay`: numbers or 0-dim tensors; where one is a tensor, the PyTorch
    reference runs. `eps`: a positive number.

    Differentiable in every tensor, to any order. Where v' is 0, so is the derivative of its root: the limit of that of theta' as the
    gradient goes to 0, and never NaN. dtypes: one for all, float32, float64, float16 or bfloat16; beside parameters in half precision
    the other tensors may be float32, as m and v should. Computed in float32 or float64; the state keeps its dtype.

    Errors: TypeError for a wrong dtype or what is not a tensor; ValueError for wrong shapes, devices and values, and for a rate
    that is NaN or infinite.

    Kernels: native CPU. Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1; the formulas of torch.optim.Adam.

    ```python
    import torch
    import fastmeta

    params, grads = torch.randn(5, 64), torch.randn(32, 5, 64)  # one start for 32 tasks
    zeros = torch.zeros_like(grads)
    params, means, squares = fastmeta.adam_step(params, grads, zeros, zeros, 0.01, step=1)
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

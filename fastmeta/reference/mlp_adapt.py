from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from .mlp_grad import mlp_grad


def mlp_adapt(
    params: Sequence[Tensor | None],
    rates: Sequence[float | Tensor | None],
    inputs: Tensor,
    targets: Tensor,
    steps: int,
    activation: str,
    loss: str,
    first_order: bool,
) -> list[Tensor | None]:
    """theta_{k+1} = theta_k - alpha_k * grad L(theta_k). Rates: one for all parameters or one each, as in `ops.mlp_adapt`."""
    lead = inputs.shape[:-2]
    adapted = [None if p is None else _own(p, lead, i % 2) for i, p in enumerate(params)]
    first = rates[0]
    per_step = isinstance(first, Tensor) and first.ndim % 2 == 1  # [steps] or [steps, out, in]
    for k in range(steps):
        _, grads = mlp_grad(adapted, inputs, targets, activation, loss)
        for i, (p, g) in enumerate(zip(adapted, grads, strict=True)):
            if p is None or g is None:
                continue
            rate = rates[0 if len(rates) == 1 else i]
            assert rate is not None
            if per_step:
                rate = cast(Tensor, rate)[k]
            adapted[i] = p - rate * (g.detach() if first_order else g)
    return adapted


def _own(param: Tensor, lead: Sequence[int], is_bias: int) -> Tensor:
    """The parameter with the task axis, a copy for each task."""
    return param if param.ndim == 2 - is_bias + len(lead) else param.expand(*lead, *param.shape)

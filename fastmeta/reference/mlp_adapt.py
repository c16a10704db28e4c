from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor

from .mlp_grad import mlp_grad
from .mlp_loss import Targets

Params = Sequence[Tensor | None]


def mlp_adapt(
    params: Params,
    rates: Sequence[float | Tensor | None],
    inputs: Tensor,
    targets: Targets,
    steps: int,
    activation: str,
    loss: str,
    first_order: bool,
) -> list[Tensor | None]:
    """theta_{k+1} = theta_k - alpha_k * grad L(theta_k). Rates: one for all parameters or one each, as in `ops.mlp_adapt`."""

    def gradient(theta: Params) -> Params:
        return mlp_grad(theta, inputs, targets, activation, loss)[1]

    return descend(params, (2, 1), rates, inputs.shape[:-2], steps, first_order, gradient)


def descend(
    params: Params,
    ranks: Sequence[int],
    rates: Sequence[float | Tensor | None],
    lead: Sequence[int],
    steps: int,
    first_order: bool,
    gradient: Callable[[Params], Params],
) -> list[Tensor | None]:
    """The steps of any network. ranks: of the parameters without their task axis, in turn; lead: the task axis, or nothing."""
    adapted = [None if p is None else _own(p, lead, ranks[i % len(ranks)]) for i, p in enumerate(params)]
    first = rates[0]
    per_step = (
        isinstance(first, Tensor) and first.ndim % 2 == 1
    )  # [steps], or [steps, ...] of a weight, whose rank is even
    for k in range(steps):
        for i, (p, g) in enumerate(zip(adapted, gradient(adapted), strict=True)):
            if p is None or g is None:
                continue
            rate = rates[0 if len(rates) == 1 else i]
            assert rate is not None
            if per_step:
                rate = cast(Tensor, rate)[k]
            adapted[i] = p - rate * (g.detach() if first_order else g)
    return adapted


def _own(param: Tensor, lead: Sequence[int], rank: int) -> Tensor:
    """The parameter with the task axis, a copy for each task; never the tensor itself, which after no step would be an output."""
    return param.view_as(param) if param.ndim == rank + len(lead) else param.expand(*lead, *param.shape)

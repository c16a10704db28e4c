from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .._layout import tensors_of
from .adam_step import adam_update
from .mlp_forward import Params, parted
from .mlp_grad import mlp_grad
from .mlp_loss import Targets
from .momentum_step import momentum_update

# Whether each step has a batch of its own; ("sgd", momentum, weight_decay, nesterov) or ("adam" or "adam_eps_hat",
# beta1, beta2, eps, weight_decay).
Inner = tuple[bool, tuple[Any, ...] | None] | None


def mlp_adapt(
    params: Params,
    rates: Sequence[float | Tensor | None],
    inputs: Tensor,
    targets: Targets,
    steps: int,
    network: str,
    loss: str,
    first_order: bool,
    inner: Inner = None,
) -> list[Tensor | None]:
    """theta_{k+1} = theta_k - alpha_k * grad L(theta_k). Rates: one for all parameters or one each, as in `ops.mlp_adapt`."""

    def gradient(theta: Params, k: int) -> Params:
        return mlp_grad(theta, *batch(k, inputs, targets, 2, loss, inner), network, loss)[1]

    lead = inputs.shape[: -2 - has_batches(inner)]
    layers, norm, _ = parted(params, network)
    ranks = (2, 1) * (len(layers) // 2) + (1, 1) * (len(norm) // 2)
    return descend(params, ranks, rates, lead, steps, first_order, gradient, inner)


def descend(
    params: Params,
    ranks: Sequence[int],
    rates: Sequence[float | Tensor | None],
    lead: Sequence[int],
    steps: int,
    first_order: bool,
    gradient: Callable[[Params, int], Params],
    inner: Inner = None,
) -> list[Tensor | None]:
    """The steps of any network. ranks: of the parameters without their task axis, in turn; lead: the task axis, or nothing."""
    adapted = [None if p is None else _own(p, lead, ranks[i % len(ranks)]) for i, p in enumerate(params)]
    first = rates[0]
    per_step = (
        isinstance(first, Tensor) and first.ndim % 2 == 1
    )  # [steps], or [steps, ...] of a weight, whose rank is even
    states: list[Sequence[Tensor]] = [() for _ in params]
    for k in range(steps):
        for i, (p, g) in enumerate(zip(adapted, gradient(adapted, k), strict=True)):
            if p is None or g is None:
                continue
            rate = rates[0 if len(rates) == 1 else i]
            assert rate is not None
            if per_step:
                rate = cast(Tensor, rate)[k]
            g = g.detach() if first_order else g
            if inner is None or inner[1] is None:
                adapted[i] = p - rate * g
            else:
                adapted[i], *states[i] = optimised(p, g, states[i], rate, k + 1, *inner[1])
    return adapted


def optimised(
    p: Tensor, g: Tensor, state: Sequence[Tensor], rate: float | Tensor, step: int, kind: str, *numbers: Any
) -> tuple[Tensor, ...]:
    """A parameter after a step of an optimiser, and its state, which is () before the first."""
    mean, square = (*state, *[torch.zeros_like(p)] * (2 - len(state)))
    if kind == "sgd":
        return momentum_update(p, g, mean, rate, *numbers)
    beta1, beta2, eps, decay = numbers
    if kind == "adam_eps_hat":
        eps = eps / (1 - beta2**step) ** 0.5
    return adam_update(p, g, mean, square, rate, step, beta1, beta2, decay, eps)


def has_batches(inner: Inner) -> bool:
    """Whether each step has a batch of its own."""
    return inner is not None and inner[0]


def batch(k: int, inputs: Tensor, targets: Targets, rank: int, loss: str, inner: Inner) -> tuple[Tensor, Targets]:
    """What step k takes of inputs [T?, K?, n, ...], `rank` axes from the examples on, and of targets."""
    if not has_batches(inner):
        return inputs, targets
    place = -2 if loss == "cross_entropy" else -3
    of_step = [y.select(at, k) for y, at in zip(tensors_of(targets), (place, -2), strict=False)]
    return inputs.select(-rank - 1, k), of_step[0] if isinstance(targets, Tensor) else of_step


def _own(param: Tensor, lead: Sequence[int], rank: int) -> Tensor:
    """The parameter with the task axis, a copy for each task; never the tensor itself, which after no step would be an output."""
    return param.view_as(param) if param.ndim == rank + len(lead) else param.expand(*lead, *param.shape)

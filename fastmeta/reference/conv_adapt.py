from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .conv_forward import Params
from .conv_grad import conv_grad
from .mlp_adapt import Inner, batch, descend, has_batches
from .mlp_loss import Targets


def conv_adapt(
    params: Params,
    rates: Sequence[float | Tensor | None],
    inputs: Tensor,
    targets: Targets,
    steps: int,
    blocks: Sequence[tuple[Any, ...]],
    loss: str,
    first_order: bool,
    inner: Inner = None,
) -> list[Tensor | None]:
    """theta_{k+1} = theta_k - alpha_k * grad L(theta_k). Rates: one for all parameters or one each, as in `ops.conv_adapt`."""
    ranks = (*((4, 1, 1, 1) * len(blocks)), 2, 1)

    def gradient(theta: Params, k: int) -> Params:
        return conv_grad(theta, *batch(k, inputs, targets, 4, loss, inner), blocks, loss)[1]

    lead = inputs.shape[: -4 - has_batches(inner)]
    return descend(params, ranks, rates, lead, steps, first_order, gradient, inner)

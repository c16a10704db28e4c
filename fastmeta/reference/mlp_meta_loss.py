from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .mlp_adapt import mlp_adapt
from .mlp_loss import mlp_loss


def mlp_meta_loss(
    params: Sequence[Tensor | None],
    rates: Sequence[float | Tensor | None],
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    steps: int,
    activation: str,
    loss: str,
    first_order: bool,
) -> Tensor:
    """The query loss [T?] of the parameters adapted to the support."""
    adapted = mlp_adapt(params, rates, support_x, support_y, steps, activation, loss, first_order)
    return mlp_loss(adapted, query_x, query_y, activation, loss)

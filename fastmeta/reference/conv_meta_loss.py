from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .conv_adapt import conv_adapt
from .conv_forward import Params
from .conv_loss import conv_loss


def conv_meta_loss(
    params: Params,
    rates: Sequence[float | Tensor | None],
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    steps: int,
    blocks: Sequence[tuple[Any, ...]],
    loss: str,
    first_order: bool,
) -> Tensor:
    """The query loss [T?] of the parameters adapted to the support."""
    adapted = conv_adapt(params, rates, support_x, support_y, steps, blocks, loss, first_order)
    return conv_loss(adapted, query_x, query_y, blocks, loss)

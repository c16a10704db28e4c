from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .conv_adapt import conv_adapt
from .conv_forward import Params, conv_outputs
from .mlp_adapt import Inner
from .mlp_loss import Targets, task_loss


def conv_meta_loss(
    params: Params,
    rates: Sequence[float | Tensor | None],
    support_x: Tensor,
    support_y: Targets,
    query_x: Tensor,
    query_y: Targets,
    steps: int,
    blocks: Sequence[tuple[Any, ...]],
    loss: str,
    first_order: bool,
    return_outputs: bool = False,
    inner: Inner = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The query loss [T?] of the parameters adapted to the support, and the query outputs [T?, Q, C], without a graph, if wanted."""
    adapted = conv_adapt(params, rates, support_x, support_y, steps, blocks, loss, first_order, inner)
    outputs = conv_outputs(adapted, query_x, blocks)
    losses = task_loss(outputs, query_y, loss)
    return (losses, outputs.detach()) if return_outputs else losses

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .mlp_adapt import Inner, mlp_adapt
from .mlp_forward import mlp_forward
from .mlp_loss import Targets, task_loss


def mlp_meta_loss(
    params: Sequence[Tensor | None],
    rates: Sequence[float | Tensor | None],
    support_x: Tensor,
    support_y: Targets,
    query_x: Tensor,
    query_y: Targets,
    steps: int,
    network: str,
    loss: str,
    first_order: bool,
    return_outputs: bool = False,
    inner: Inner = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The query loss [T?] of the parameters adapted to the support, and the query outputs [T?, Q, C], without a graph, if wanted."""
    adapted = mlp_adapt(params, rates, support_x, support_y, steps, network, loss, first_order, inner)
    outputs = mlp_forward(adapted, query_x, network)
    losses = task_loss(outputs, query_y, loss)
    return (losses, outputs.detach()) if return_outputs else losses

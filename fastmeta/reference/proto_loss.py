from __future__ import annotations

from torch import Tensor

from .mlp_loss import negative_log_likelihood, per_counted
from .proto_log_softmax import proto_log_softmax


def proto_loss(
    query: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    metric: str,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    """-log p(y = target | x): [T?, Q] for reduction "none", else each task's sum or mean over the targets not ignored."""
    losses = negative_log_likelihood(proto_log_softmax(query, prototypes, temperature, metric), targets, ignore_index)
    if reduction == "none":
        return losses
    return losses.sum(-1) if reduction == "sum" else per_counted(losses.sum(-1), targets, ignore_index)

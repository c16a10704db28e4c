from __future__ import annotations

import torch
from torch import Tensor

from .mlp_loss import negative_log_likelihood, per_counted
from .proto_log_softmax import distances


def proto_loss(
    query: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    exclude: Tensor | None,
    target_distance: Tensor | None,
    metric: str,
    ignore_index: int,
    reduction: str,
    margin: float,
) -> Tensor:
    """-log p(y = target | x): [T?, Q] for reduction "none", else each task's sum or mean over the targets not ignored."""
    logits = -distances(query, prototypes, metric) / temperature
    place = torch.arange(logits.shape[-1], device=logits.device)
    if target_distance is not None:
        logits = torch.where(targets.unsqueeze(-1) == place, (-target_distance / temperature).unsqueeze(-1), logits)
    if margin != 0:
        logits = logits - margin * (targets.unsqueeze(-1) == place).to(logits.dtype)
    if exclude is not None:
        counted = torch.where(
            targets == ignore_index, -1, exclude
        )  # so that something is left where there is one class
        logits = torch.where(counted.unsqueeze(-1) == place, -torch.inf, logits)
        wrong = (counted == targets) & (targets != ignore_index)
        targets = torch.where(wrong, place.numel() if ignore_index != place.numel() else -1, targets)
    losses = negative_log_likelihood(torch.log_softmax(logits, -1), targets, ignore_index)
    if reduction == "none":
        return losses
    return losses.sum(-1) if reduction == "sum" else per_counted(losses.sum(-1), targets, ignore_index)

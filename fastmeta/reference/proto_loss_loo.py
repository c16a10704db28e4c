from __future__ import annotations

import torch
from torch import Tensor

from .mlp_loss import per_counted
from .proto_log_softmax import distances


def proto_loss_loo(
    embeddings: Tensor,
    labels: Tensor,
    num_classes: int,
    temperature: float | Tensor,
    metric: str,
    reduction: str,
) -> Tensor:
    """[T?, S, D], [T?, S]: the loss of each example with prototypes of its own for each, of which its own class's is without it."""
    member = torch.nn.functional.one_hot(labels, num_classes).to(embeddings.dtype)  # [T?, S, N]
    others = 1 - torch.eye(labels.shape[-1], dtype=member.dtype, device=member.device)
    count = others @ member  # [T?, S, N]: examples of each class but the query
    sums = torch.einsum("ij,...jn,...jd->...ind", others, member, embeddings)
    centres = sums / count.unsqueeze(-1)  # [T?, S, N, D]
    apart = distances(embeddings.unsqueeze(-2), centres, metric).squeeze(-2)  # [T?, S, N]
    log_probs = torch.log_softmax(-apart / temperature, -1)
    losses = -log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    if reduction == "none":
        return losses
    return losses.sum(-1) if reduction == "sum" else per_counted(losses.sum(-1), labels, -1)

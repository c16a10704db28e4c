from __future__ import annotations

import torch
from torch import Tensor

from .proto_log_softmax import proto_log_softmax


def matching_log_probs(
    query: Tensor, support: Tensor, labels: Tensor, temperature: float | Tensor, num_classes: int, metric: str
) -> Tensor:
    """[T?, Q, D], [T?, S, D], [T?, S] -> [T?, Q, N]: log of the attention that the support of each class gets. A label out of
    range makes its task NaN."""
    attention = proto_log_softmax(query, support, temperature, metric).unsqueeze(-1)  # log, [T?, Q, S, 1]
    member = labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)  # [T?, S, N]
    log_probs = torch.where(member.unsqueeze(-3), attention, -torch.inf).logsumexp(-2)
    in_range = ((labels >= 0) & (labels < num_classes)).all(-1)[..., None, None]
    return log_probs * torch.where(in_range, query.new_ones(()), torch.nan)  # NaN in the gradient too

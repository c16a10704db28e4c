from __future__ import annotations

import torch
from torch import Tensor

from .proto_log_softmax import distances


def symmetric_loss(query: Tensor, keys: Tensor, temperature: float | Tensor, metric: str) -> Tensor:
    """[T?, B, D] twice: of each task half of the mean losses of queries among keys and of keys among queries, row i with row i."""
    logits = -distances(query, keys, metric) / temperature
    both = torch.log_softmax(logits, -1) + torch.log_softmax(logits, -2)
    return both.diagonal(dim1=-2, dim2=-1).mean(-1) / -2

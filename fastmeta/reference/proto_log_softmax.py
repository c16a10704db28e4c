from __future__ import annotations

import torch
from torch import Tensor


def distances(query: Tensor, prototypes: Tensor, metric: str) -> Tensor:
    """[T?, Q, D], [T?, N, D] -> [T?, Q, N]; by differences: exact 0 at coincident points, no cancellation by offsets."""
    if metric == "cosine":
        return 1 - _unit(query) @ _unit(prototypes).mT
    square = (query.unsqueeze(-2) - prototypes.unsqueeze(-3)).square().sum(-1)
    if metric == "sqeuclidean":
        return square
    apart = square != 0  # NaN too: it must not become a distance of 0
    return torch.where(apart, torch.where(apart, square, 1).sqrt(), 0)  # gradient 0 at coincident points


def _unit(x: Tensor) -> Tensor:
    """x / |x| of each row; a zero vector stays, with gradient 0."""
    square = x.square().sum(-1, keepdim=True)
    apart = square != 0  # NaN too
    return torch.where(apart, x / torch.where(apart, square, 1).sqrt(), 0)


def proto_log_softmax(query: Tensor, prototypes: Tensor, temperature: float | Tensor, metric: str) -> Tensor:
    """log p(y = k | x) = log_softmax_k(-d(x, c_k) / temperature)."""
    return torch.log_softmax(-distances(query, prototypes, metric) / temperature, -1)

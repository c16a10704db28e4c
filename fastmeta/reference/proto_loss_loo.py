from __future__ import annotations

import torch
from torch import Tensor

from .proto_log_softmax import distances
from .proto_loss import proto_loss
from .prototypes import prototypes


def proto_loss_loo(
    embeddings: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    num_classes: int,
    metric: str,
    reduction: str,
) -> Tensor:
    """[T?, S, D], [T?, S]: the loss of each example with the means of its classes, of which its own class's is without it."""
    centres = prototypes(embeddings, labels, num_classes)
    counts = (labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)).sum(-2)  # [T?, N]
    apart = distances_to_others(embeddings, centres, labels, counts, metric)
    return proto_loss(
        embeddings, centres, labels, temperature, None, apart, None, None, metric, -1, reduction, 0, 0, False
    )  # type: ignore[return-value]


def distances_to_others(x: Tensor, centres: Tensor, labels: Tensor, counts: Tensor, metric: str) -> Tensor:
    """[T?, S]: d(x_i, c_iy), c_iy = c_y + (c_y - x_i) / (n_y - 1) the mean without i; so x_i - c_iy = (x_i - c_y) n / (n - 1)."""
    places = labels.clamp(0, counts.shape[-1] - 1)
    own = centres.gather(-2, places.unsqueeze(-1).expand_as(x))  # [T?, S, D]
    others = (counts.gather(-1, places) - 1).to(x.dtype)
    if metric == "cosine":
        return of_rows(x, own + (own - x) / others.unsqueeze(-1), metric)
    factor = (others + 1) / others
    return of_rows(x, own, metric) * (factor if metric == "euclidean" else factor.square())


def of_rows(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """d(x_i, y_i): [T?, S, D], [T?, S, D] -> [T?, S]."""
    return distances(x.unsqueeze(-2), y.unsqueeze(-2), metric)[..., 0, 0]

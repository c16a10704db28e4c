"""Scores of a few-shot head, and its class means by the op: what the heads of other libraries return."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..distance.prototypes import prototypes
from ..reference.proto_log_softmax import distances

FLOOR = 1e-6  # what easyfsl adds to a probability before its logarithm


def scores(query: Tensor, centres: Tensor, metric: str) -> Tensor:
    """-d(x, c_k), [Q, D], [N, D] -> [Q, N]. Not by the log-softmax, which keeps the digits of the differences alone."""
    return -distances(query, centres, metric)


def matching_scores(query: Tensor, support: Tensor, weights: Tensor) -> Tensor:
    """log(sum_i a_i w_ik + 1e-6), a = softmax_i(<x, s_i> / |s_i|); [Q, D], [S, D], [S, N] -> [Q, N]."""
    return ((query @ F.normalize(support).mT).softmax(1) @ weights + FLOOR).log()


def class_means(support: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """[S, ...], [S] -> [N, ...]."""
    if support.ndim < 2:
        raise ValueError(f"prototypes: support must have at least 2 dimensions, got shape {list(support.shape)}")
    found: Tensor = prototypes(support.flatten(1), labels, num_classes).unflatten(-1, support.shape[1:])
    return found

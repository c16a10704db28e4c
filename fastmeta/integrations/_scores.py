"""Scores of a few-shot head: what the heads of other libraries return, by the fused ops."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.matching_log_probs import matching_log_probs
from ..ops.proto_log_softmax import proto_log_softmax
from ..ops.prototypes import prototypes
from ..reference.proto_log_softmax import distances

FLOOR = 1e-6  # what easyfsl adds to a probability before its logarithm


def scores(query: Tensor, centres: Tensor, metric: str) -> Tensor:
    """-d(x, c_k), [Q, D], [N, D] -> [Q, N]: the log-softmax of it, moved by what makes the first column right."""
    shifted = proto_log_softmax(query, centres, metric=metric)
    return shifted - (shifted[:, :1] + distances(query, centres[:1], metric))


def matching_scores(query: Tensor, support: Tensor, one_hot: Tensor) -> Tensor:
    """log(sum_i a_i [y_i = k] + 1e-6), a = softmax_i(<x, s_i> / |s_i|); [Q, D], [S, D], [S, N] -> [Q, N].

    <x, u_i> = -|x - u_i|^2 / 2 + (|x|^2 + 1) / 2 for unit vectors u_i, and what is the same for all i cancels; a zero vector gets
    its length from one more feature, which is 0 in x.
    """
    unit = F.normalize(support)
    is_zero = ~unit.detach().bool().any(-1, keepdim=True)
    unit, query = torch.cat([unit, is_zero.to(unit)], -1), F.pad(query, (0, 1))
    found = matching_log_probs(
        query, unit, one_hot.argmax(-1), one_hot.shape[-1], metric="sqeuclidean", temperature=2.0
    )
    return torch.logaddexp(found, found.new_tensor(math.log(FLOOR)))


def class_means(support: Tensor, labels: Tensor) -> Tensor:
    """[S, D], [S] -> [N, D], N one more than the largest label."""
    labels = labels.long()
    return prototypes(support, labels, int(labels.max()) + 1)

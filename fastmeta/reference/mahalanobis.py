from __future__ import annotations

import torch
from torch import Tensor


def covariance_rows(support: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """[T?, S, D], [T?, S], [T?, N, D] -> A [T?, N, 2S, D] with A_k' A_k = l S_k + (1 - l) S, l = n_k / (n_k + 1). S_k is the covariance
    of the n_k examples of class k, 0 of one example, S that of all examples of the task."""
    shots, ways = support.shape[-2], centres.shape[-2]
    member = labels.unsqueeze(-2) == torch.arange(ways, device=labels.device).unsqueeze(-1)  # [T?, N, S]
    own = torch.where(member.unsqueeze(-1), support.unsqueeze(-3) - centres.unsqueeze(-2), 0)  # [T?, N, S, D]
    around = (support - support.mean(-2, keepdim=True)).unsqueeze(-3)
    counts = member.sum(-1)[..., None, None].to(support.dtype)
    of_class, of_task = counts / (counts + 1) / (counts - 1).clamp(min=1), 1 / (counts + 1) / max(shots - 1, 1)
    return torch.cat([own * of_class.sqrt(), around * of_task.sqrt()], -2)


def mahalanobis_log_softmax(
    query: Tensor, centres: Tensor, rows: Tensor, temperature: float | Tensor, beta: float
) -> Tensor:
    """[T?, Q, D], [T?, N, D], A [T?, N, R, D] -> [T?, Q, N]: log softmax_k(-v' (A_k' A_k + beta I)^-1 v / temperature), v = x - c_k.
    NaN where a matrix is not positive definite in its precision."""
    apart = query.unsqueeze(-3) - centres.unsqueeze(-2)  # [T?, N, Q, D]
    square = _by_rows if 2 * rows.shape[-2] <= query.shape[-1] else _by_covariances
    return torch.log_softmax(-square(apart, rows, beta).mT / temperature, -1)


def _by_covariances(apart: Tensor, rows: Tensor, beta: float) -> Tensor:
    """|L^-1 v|^2 with L L' = A' A + beta I, [D, D]."""
    root = _root(rows.mT @ rows, beta)
    found: Tensor = torch.linalg.solve_triangular(root, apart.mT, upper=False).square().sum(-2)
    return found


def _by_rows(apart: Tensor, rows: Tensor, beta: float) -> Tensor:
    """2 v' z - |A z|^2 - beta |z|^2, of which z = (A' A + beta I)^-1 v = (v - A' (A A' + beta I)^-1 A v) / beta is the maximum: its
    rounding counts squared."""
    root = _root(rows @ rows.mT, beta)  # [R, R]
    half = torch.linalg.solve_triangular(root, rows @ apart.mT, upper=False)
    z = (apart - torch.linalg.solve_triangular(root.mT, half, upper=True).mT @ rows) / beta  # [T?, N, Q, D]
    found: Tensor = ((2 * apart - beta * z) * z).sum(-1) - (z @ rows.mT).square().sum(-1)
    return found


def _root(matrix: Tensor, beta: float) -> Tensor:
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    root, failed = torch.linalg.cholesky_ex(matrix + beta * eye)
    found: Tensor = torch.where((failed == 0)[..., None, None], root, torch.nan)
    return found

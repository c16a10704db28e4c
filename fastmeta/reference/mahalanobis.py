from __future__ import annotations

import torch
from torch import Tensor


def class_covariances(support: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """[T?, S, D], [T?, S], [T?, N, D] -> [T?, N, D, D]: l S_k + (1 - l) S, l = n_k / (n_k + 1). S_k is the covariance of the n_k examples
    of class k, 0 of one example, S that of all examples of the task."""
    shots, ways = support.shape[-2], centres.shape[-2]
    member = labels.unsqueeze(-2) == torch.arange(ways, device=labels.device).unsqueeze(-1)  # [T?, N, S]
    apart = support.unsqueeze(-3) - centres.unsqueeze(-2)
    own = torch.where(member.unsqueeze(-1), apart, 0)  # [T?, N, S, D]
    counts = member.sum(-1)[..., None, None].to(support.dtype)
    around = support - support.mean(-2, keepdim=True)
    of_class = own.mT @ own / (counts - 1).clamp(min=1)
    of_task = around.mT @ around / max(shots - 1, 1)
    share = counts / (counts + 1)
    return share * of_class + (1 - share) * of_task.unsqueeze(-3)


def mahalanobis_log_softmax(
    query: Tensor, centres: Tensor, covariances: Tensor, temperature: float | Tensor, beta: float
) -> Tensor:
    """[T?, Q, D], [T?, N, D], [T?, N, D, D] -> [T?, Q, N]: log softmax_k(-|R_k^-1 (x - c_k)|^2 / temperature), R_k R_k' = C_k + beta I. NaN
    where that is not positive definite in its precision."""
    eye = torch.eye(query.shape[-1], dtype=query.dtype, device=query.device)
    root, failed = torch.linalg.cholesky_ex(covariances + beta * eye)
    root = torch.where((failed == 0)[..., None, None], root, torch.nan)
    apart = query.unsqueeze(-3) - centres.unsqueeze(-2)  # [T?, N, Q, D]
    square = torch.linalg.solve_triangular(root, apart.mT, upper=False).square().sum(-2)  # [T?, N, Q]
    return torch.log_softmax(-square.mT / temperature, -1)

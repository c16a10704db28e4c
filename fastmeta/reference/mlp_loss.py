from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .mlp_forward import mlp_forward

IGNORE_INDEX = -100
Targets = Tensor | Sequence[Tensor]  # or a pair: with the weights of the examples, [T?, n]


def negative_log_likelihood(log_probs: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    """[T?, n, C], [T?, n] -> [T?, n]: 0 where the target is ignore_index, NaN where it is out of range, its gradient too."""
    classes = log_probs.shape[-1]
    picked = log_probs.gather(-1, targets.clamp(0, classes - 1).unsqueeze(-1)).squeeze(-1)
    ignored = targets == ignore_index
    sign = torch.where((targets >= 0) & (targets < classes) | ignored, -1.0, torch.nan).to(log_probs.dtype)
    return torch.where(ignored, 0.0, sign * picked)


def per_counted(total: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    """A task's total over the number of its targets that are not ignored; 0 where there are none."""
    return total / (targets != ignore_index).sum(-1).clamp(min=1)


def weighting(targets: Targets, loss: str) -> tuple[Tensor, Tensor | None]:
    """Targets and weights, where there are such: 0 for an example that is ignored, whatever its weight."""
    if isinstance(targets, Tensor):
        return targets, None
    targets, weights = targets
    return targets, weights if loss == "mse" else torch.where(targets == IGNORE_INDEX, 0.0, weights)


def task_loss(outputs: Tensor, targets: Targets, loss: str) -> Tensor:
    """[T?, n, C] -> [T?]: each task's mean, as PyTorch's, but 0 for a task without examples."""
    targets, weights = weighting(targets, loss)
    if loss == "mse":
        squares = (outputs - targets).square()
        total = squares.sum((-2, -1)) if weights is None else (squares.sum(-1) * weights).sum(-1)
        return total / max(outputs.shape[-2] * outputs.shape[-1], 1)
    losses = negative_log_likelihood(outputs.log_softmax(-1), targets, IGNORE_INDEX)
    losses = losses if weights is None else losses * weights
    return per_counted(losses.sum(-1), targets, IGNORE_INDEX)


def mlp_loss(params: Sequence[Tensor | None], inputs: Tensor, targets: Targets, network: str, loss: str) -> Tensor:
    return task_loss(mlp_forward(params, inputs, network), targets, loss)

from __future__ import annotations

import torch
from torch import Tensor

from .mlp_loss import negative_log_likelihood, per_counted
from .proto_log_softmax import distances


def proto_loss(
    query: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    exclude: Tensor | None,
    target_distance: Tensor | None,
    bias: Tensor | None,
    classes: Tensor | None,
    metric: str,
    ignore_index: int,
    reduction: str,
    margin: float,
    smoothing: float,
    return_accuracy: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """-log p(y = target | x): [T?, Q] for reduction "none", else each task's sum or mean over the targets not ignored. Targets [T?, Q, N]:
    -sum_n targets_n log p_n."""
    logits = -distances(query, prototypes, metric) / temperature
    place = torch.arange(logits.shape[-1], device=logits.device)
    if target_distance is not None:
        logits = torch.where(targets.unsqueeze(-1) == place, (-target_distance / temperature).unsqueeze(-1), logits)
    if bias is not None:
        logits = logits + bias.unsqueeze(-2)
    if targets.is_floating_point():
        found = _of_shares(logits, targets, exclude, smoothing, return_accuracy)
        count = max(targets.shape[-2], 1) if reduction == "mean" else 1
        found = found if reduction == "none" else tuple(x.sum(-1) / count for x in found)
        return (found[0], found[1]) if return_accuracy else found[0]
    ignored, out, right = targets == ignore_index, torch.zeros_like(logits, dtype=torch.bool), targets
    if exclude is not None:
        counted = torch.where(ignored, -1, exclude)  # so that something is left where there is one class
        out = counted.unsqueeze(-1) == place
        wrong = (counted == targets) & ~ignored if classes is None else torch.zeros_like(ignored)
        targets = torch.where(wrong, place.numel() if ignore_index != place.numel() else -1, targets)
    nearest = logits.detach().masked_fill(out, -torch.inf).argmax(-1) if return_accuracy else None
    if margin != 0:
        logits = logits - margin * (targets.unsqueeze(-1) == place).to(logits.dtype)
    log_p = torch.log_softmax(torch.where(out, -torch.inf, logits), -1)
    if classes is None:
        losses = negative_log_likelihood(log_p, targets, ignore_index)
    else:
        losses = _of_classes(log_p, classes.unsqueeze(-2) == targets.unsqueeze(-1), out, ignored)
        nearest = None if nearest is None else classes.expand(*targets.shape[:-1], -1).gather(-1, nearest)
    if smoothing != 0:
        of_all = -torch.where(out, 0, log_p).sum(-1) / (~out).sum(-1)
        losses = (1 - smoothing) * losses + smoothing * torch.where(ignored, 0, of_all)
    loss = _reduced(losses, targets, ignore_index, reduction)
    if nearest is None:
        return loss
    hits = ((nearest == right) & ~ignored & ~losses.isnan()).to(losses.dtype)
    return loss, _reduced(hits, targets, ignore_index, reduction)


def _of_shares(
    logits: Tensor, shares: Tensor, exclude: Tensor | None, smoothing: float, return_accuracy: bool
) -> tuple[Tensor, ...]:
    """The losses [T?, Q], NaN where what is excluded has a share; and whether the largest logit is that of the largest share."""
    place = torch.arange(logits.shape[-1], device=logits.device)
    out = torch.zeros_like(logits, dtype=torch.bool) if exclude is None else exclude.unsqueeze(-1) == place
    log_p = torch.log_softmax(torch.where(out, -torch.inf, logits), -1)
    counted = torch.where(out, 0, log_p)
    wrong = (out & (shares != 0)).any(-1)
    losses = torch.where(wrong, torch.nan, 1.0).to(logits.dtype) * -(shares * counted).sum(-1)
    if smoothing != 0:
        losses = (1 - smoothing) * losses - smoothing * counted.sum(-1) / (~out).sum(-1)
    if not return_accuracy:
        return (losses,)
    nearest = logits.detach().masked_fill(out, -torch.inf).argmax(-1)
    return losses, ((nearest == shares.detach().argmax(-1)) & ~losses.isnan()).to(losses.dtype)


def _of_classes(log_p: Tensor, same: Tensor, out: Tensor, ignored: Tensor) -> Tensor:
    """-log of the sum of p over the prototypes of the target's class; NaN where there is none, 0 where it is ignored."""
    same = same & ~out
    some = same.any(-1)
    kept = torch.where(some.unsqueeze(-1), same, True)  # numbers, which are left out
    losses = -torch.where(kept, log_p, -torch.inf).logsumexp(-1)
    known = torch.where(some | ignored, 1.0, torch.nan).to(losses.dtype)
    return torch.where(ignored, 0, known * losses)


def _reduced(x: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> Tensor:
    if reduction == "none":
        return x
    return x.sum(-1) if reduction == "sum" else per_counted(x.sum(-1), targets, ignore_index)

"""What proto_loss's softmax sees in place of distances: of a prototype that does not count infinity, of the target what is given,
a margin added; less biases. In registers, on the way from the distances to the softmax, forward and backward: a number or two more a
query, and one a prototype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._distance import INFINITY, divide, online_log_sum_exp


@triton.jit
def online_with_margin(nearest, total, distance, rate, at_target, MARGIN: tl.constexpr):
    """`online_log_sum_exp` of the logits less the margin at the target. It is taken off behind the nearest's distance, so that a large
    one leaves its digits."""
    if MARGIN == 0:
        return online_log_sum_exp(nearest, total, distance, rate)
    else:
        off = tl.where(at_target, tl.full((1, 1), MARGIN, distance.dtype), 0.0)
        behind = divide(off, rate)
        new_nearest = tl.minimum(nearest, tl.min(distance + behind, 1))
        shift = tl.where(new_nearest == INFINITY, 0.0, new_nearest)
        total *= tl.exp((shift - nearest) * rate)
        return new_nearest, total + tl.sum(tl.exp((shift[:, None] - distance) * rate - off), 1)


@triton.jit
def replaced(distance, n, N, row, in_q, target, rate, given, ignore_index):
    """The distances [Q, N] so, without the margin; each query's target, -1 where that is a prototype that does not count; and this one,
    or -1. `given`: of each query the prototype that does not count, and the target's distance; of each prototype of the task its bias and
    its class; or None."""
    exclude, target_distance, bias, classes = given
    at_target = n[None, :] == target[:, None]
    out = tl.full(target.shape, -1, tl.int64)
    if target_distance is not None:
        own = tl.load(target_distance + row, in_q, 0.0).to(distance.dtype)
        distance = tl.where(at_target, own[:, None], distance)
    if bias is not None:
        distance -= divide(tl.load(bias + n, n < N, 0.0).to(distance.dtype), rate)[None, :]
    if exclude is not None:
        out = tl.load(exclude + row, in_q, -1)
        out = tl.where(target == ignore_index, -1, out)
        distance = tl.where(n[None, :] == out[:, None], INFINITY, distance)
        if classes is None:
            target = tl.where((target == out) & (target != ignore_index), tl.where(ignore_index == -1, -2, -1), target)
    return distance, target, out


def target_gradients(
    target_distance: Tensor,
    targets: Tensor,
    exclude: Tensor | None,
    bias: Tensor | None,
    temperature: float | Tensor,
    kept: Sequence[Any],
    dloss: Tensor,
    counts: Tensor | None,
    ways: int,
    ignore_index: int,
    margin: float,
    smoothing: float,
) -> tuple[Tensor, Tensor]:
    """The gradient of the distances given [T?, Q], and the part that they have in the temperature's."""
    nearest, log_sum = (x.view(targets.shape) for x in kept[:2])
    own = target_distance.to(nearest.dtype)
    weight = (dloss if dloss.ndim == targets.ndim else dloss.unsqueeze(-1)).to(nearest.dtype)
    if counts is not None:
        weight = weight / counts.view(weight.shape)
    valid = (targets >= 0) & (targets < ways)
    if exclude is not None:
        valid &= exclude != targets
    weight = torch.where(targets == ignore_index, 0, torch.where(valid, weight, torch.nan))
    farther = own - nearest
    log_p = -farther / temperature - margin - log_sum
    if bias is not None:
        each = bias.to(nearest.dtype).expand(*targets.shape[:-1], ways)
        log_p = log_p + each.gather(-1, targets.clamp(0, ways - 1))
    dlogits = torch.expm1(log_p)
    if smoothing != 0:
        out = 0 if exclude is None else ((exclude >= 0) & (exclude < ways)).to(nearest.dtype)
        dlogits = dlogits + (smoothing - smoothing / (ways - out))
    dlogits = torch.where(targets == ignore_index, 0, weight * dlogits)
    of_temperature = (dlogits * farther).sum() / temperature / temperature
    return (dlogits / -temperature).to(target_distance.dtype), of_temperature

"""What proto_loss's softmax sees in place of distances: of a prototype that does not count infinity, of the target what is given,
a margin added. In registers, on the way from the distances to the softmax, forward and backward: a number or two more a query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._distance import INFINITY


@triton.jit
def replaced(distance, n, row, in_q, target, rate, given, ignore_index):
    """The distances [Q, N] so, and each query's target, -1 where that is what does not count; `given`: of each query the prototype
    that does not count, and the target's distance, or None; the margin."""
    exclude, target_distance, MARGIN = given
    at_target = n[None, :] == target[:, None]
    if target_distance is not None:
        own = tl.load(target_distance + row, in_q, 0.0).to(distance.dtype)
        distance = tl.where(at_target, own[:, None], distance)
    if MARGIN != 0:
        distance += tl.where(at_target, MARGIN / rate, 0.0).to(distance.dtype)
    if exclude is not None:
        out = tl.load(exclude + row, in_q, -1)
        out = tl.where(target == ignore_index, -1, out)
        distance = tl.where(n[None, :] == out[:, None], INFINITY, distance)
        target = tl.where((target == out) & (target != ignore_index), tl.where(ignore_index == -1, -2, -1), target)
    return distance, target


def target_gradients(
    target_distance: Tensor,
    targets: Tensor,
    exclude: Tensor | None,
    temperature: float | Tensor,
    kept: Sequence[Any],
    dloss: Tensor,
    counts: Tensor | None,
    ways: int,
    ignore_index: int,
    margin: float,
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
    dlogits = weight * torch.expm1(-farther / temperature - margin - log_sum)
    dlogits = torch.where(targets == ignore_index, 0, dlogits)
    of_temperature = (dlogits * farther).sum() / temperature / temperature
    return (dlogits / -temperature).to(target_distance.dtype), of_temperature

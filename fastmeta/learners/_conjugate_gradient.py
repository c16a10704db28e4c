from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, steps: int) -> Tensor:
    """x with A x = b for every task, [T, P], from 0 in at most `steps` steps; product(v) = A v, A symmetric.

    A task stops where it is solved up to rounding, and where a direction shows that its A is not positive definite. NaN in A or b
    gives NaN.
    Source: Hestenes and Stiefel 1952, J. Res. NBS 49(6).
    """
    x, residual, direction = torch.zeros_like(b), b, b
    size = b.square().sum(1, keepdim=True)
    solved, going = size * torch.finfo(b.dtype).eps ** 2, size != 0
    for _ in range(steps):
        image = product(direction)
        bend = (direction * image).sum(1, keepdim=True)
        going = going & ~(size <= solved) & ~(bend <= 0)  # NaN goes on
        rate = torch.where(going, size / bend, 0)
        x, residual = x + rate * direction, residual - rate * image
        before, size = size, residual.square().sum(1, keepdim=True)
        direction = residual + torch.where(going, size / before, 0) * direction
    return x

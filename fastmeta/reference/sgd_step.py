from __future__ import annotations

from torch import Tensor


def sgd_step(params: list[Tensor], grads: list[Tensor], lr: list[float | Tensor]) -> list[Tensor]:
    """theta - alpha * g for each tensor; one rate serves all where lr has length 1."""
    rates = lr * len(params) if len(lr) == 1 else lr
    return [p - rate * g for p, g, rate in zip(params, grads, rates, strict=True)]

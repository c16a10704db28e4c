from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def momentum_step(
    params: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    lr: list[float | Tensor],
    learned: Sequence[Tensor],
    momentum: float | None,
    weight_decay: float | None,
    nesterov: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Of each tensor; one rate serves all where lr has length 1. A number that is None is the next one of `learned`."""
    more = iter(learned)
    mu, decay = (next(more) if x is None else x for x in (momentum, weight_decay))
    rates = lr * len(params) if len(lr) == 1 else lr
    each = zip(params, grads, velocities, rates, strict=True)
    found = [momentum_update(p, g, b, rate, mu, decay, nesterov) for p, g, b, rate in each]
    return [p for p, _ in found], [b for _, b in found]


def momentum_update(
    p: Tensor, g: Tensor, b: Tensor, lr: Any, momentum: Any, weight_decay: Any, nesterov: bool
) -> tuple[Tensor, Tensor]:
    """b' = momentum b + g,  theta' = theta - lr b'; g has its decay in it, and g + momentum b' takes the place of b' with Nesterov."""
    g = decayed(p, g, weight_decay)
    b = plus(g, b, momentum)
    return plus(p, plus(g, b, momentum) if nesterov else b, lr, -1), b


def decayed(p: Tensor, g: Tensor, weight_decay: Any) -> Tensor:
    return g if isinstance(weight_decay, float) and weight_decay == 0 else plus(g, p, weight_decay)


def plus(x: Tensor, y: Tensor, scale: Any, sign: int = 1) -> Tensor:
    """x + sign scale y, in one operation where the scale is a number."""
    if isinstance(scale, float):
        return x.add(y, alpha=sign * scale)
    scaled: Tensor = scale * y
    return x + scaled if sign > 0 else x - scaled

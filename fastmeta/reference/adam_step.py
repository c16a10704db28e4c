from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._torch import is_plain
from .momentum_step import decayed, plus


def adam_step(
    params: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    lr: list[float | Tensor],
    step: float | Tensor,
    learned: Sequence[Tensor],
    beta1: float | None,
    beta2: float | None,
    weight_decay: float | None,
    eps: float,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Of each tensor; one rate serves all where lr has length 1. A number that is None is the next one of `learned`."""
    more = iter(learned)
    b1, b2, decay = (next(more) if x is None else x for x in (beta1, beta2, weight_decay))
    rates = lr * len(params) if len(lr) == 1 else lr
    each = zip(params, grads, means, squares, rates, strict=True)
    found = [adam_update(p, g, m, v, rate, step, b1, b2, decay, eps) for p, g, m, v, rate in each]
    return [p for p, _, _ in found], [m for _, m, _ in found], [v for _, _, v in found]


def adam_update(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    lr: Any,
    step: Any,
    beta1: Any,
    beta2: Any,
    weight_decay: Any,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """m' = beta1 m + (1 - beta1) g,  v' = beta2 v + (1 - beta2) g^2,
    theta' = theta - lr m' / (1 - beta1^k) / (sqrt(v' / (1 - beta2^k)) + eps)."""
    g = decayed(p, g, weight_decay)
    m = plus(beta1 * m, g, 1 - beta1)
    v = plus(beta2 * v, g, (1 - beta2) * g)
    unbiased = m / (1 - beta1**step)
    return plus(p, unbiased / (_root(v / (1 - beta2**step)) + eps), lr, -1), m, v


def _root(v: Tensor) -> Tensor:
    """sqrt(v), whose derivatives at 0 are 0, for u = m / (sqrt(v) + eps).

    v is 0 where each g that counts in it is 0, and m with it. Near there |m| <= c |g| and sqrt(v) >= s |g|, so in
    du = dm / (sqrt(v) + eps) - m d sqrt(v) / (sqrt(v) + eps)^2 the last term, with |d sqrt(v) / dg| <= s', goes to 0 with g, and du to
    dm / eps. autograd would make 0 times infinity of it. Where m is not 0 (beta2 = 0), the slopes of both sides, m s' and -m s', have
    the mean 0."""
    if not torch.is_grad_enabled() and is_plain():
        return v.sqrt()
    zero = v == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, v).sqrt())

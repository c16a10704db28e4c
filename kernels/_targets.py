"""What proto_loss takes for a query's target: one prototype, all that count of a class, or, where labels are smoothed, a little of each.

In registers, beside the softmax over all prototypes: with classes a softmax of its own over those of the target's, about the nearest of
them, so that far ones do not vanish; with smoothing the sum of the distances less the nearest. Backward has 2 numbers more a query.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._distance import INFINITY, accurate_log, divide, online_log_sum_exp


@triton.jit
def that_count(n, N, out):
    """Which pairs [Q, N] are of a prototype that counts; `out`: of each query the one that does not, or -1."""
    return (n[None, :] < N) & (n[None, :] != out[:, None])


@triton.jit
def number_that_count(N, out, dtype: tl.constexpr):
    """How many of the first N prototypes count, [Q]."""
    return (N - tl.where((out >= 0) & (out < N), 1, 0)).to(dtype)


@triton.jit
def of_target(n, N, target, out, classes):
    """Which pairs [Q, N] are of the query's target: with classes, of a prototype of this class that counts."""
    if classes is None:
        return n[None, :] == target[:, None]
    else:
        return (tl.load(classes + n, n < N, 0)[None, :] == target[:, None]) & that_count(n, N, out)


@triton.jit
def online_own(nearest, total, distance, rate, at_target):
    """`online_log_sum_exp` of the target's class alone; a minimum that stays infinite: no such prototype."""
    return online_log_sum_exp(nearest, total, tl.where(at_target, distance, INFINITY), rate)


@triton.jit
def own_log(total):
    """The log of such a total; 0 where there is none."""
    return accurate_log(tl.where(total == 0, 1.0, total))


@triton.jit
def online_sum(total, nearest, new_nearest, distance, start, n, N, out):
    """The sum [Q] of distances less their minimum so far, of those that count, taking in a block that begins at column `start`."""
    old = tl.where(nearest == INFINITY, 0.0, nearest)
    new = tl.where(new_nearest == INFINITY, 0.0, new_nearest)
    total += number_that_count(start, out, total.dtype) * (old - new)
    return total + tl.sum(tl.where(that_count(n, N, out), distance - new[:, None], 0.0), 1)


@triton.jit
def smoothed_loss(loss, farther, N, out, rate, log_total, MARGIN: tl.constexpr, SMOOTHING: tl.constexpr):
    """(1 - s) loss + s mean_n -log p_n, from the sum of distances less the nearest."""
    number = number_that_count(N, out, loss.dtype)
    of_all = divide(farther * rate + tl.full((1,), MARGIN, loss.dtype), number) + log_total
    return tl.full((1,), 1 - SMOOTHING, loss.dtype) * loss + tl.full((1,), SMOOTHING, loss.dtype) * of_all


@triton.jit
def smoothed_target(own, n, N, out, dtype: tl.constexpr, SMOOTHING: tl.constexpr):
    """What a query wants of each prototype, [Q, N]: (1 - s) of its target's share, and s in equal shares of all."""
    of_all = divide(tl.full(out.shape, SMOOTHING, dtype), number_that_count(N, out, dtype))
    own = own.to(dtype) * tl.full((1, 1), 1 - SMOOTHING, dtype)
    return own + tl.where(that_count(n, N, out), of_all[:, None], 0.0)

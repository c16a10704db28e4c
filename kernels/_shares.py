"""Targets of proto_loss that are shares of all prototypes: loss = sum_n t_n (-log p_n), dz = (sum_n t_n) p - t, dt_n = -log p_n.

In registers, beside the softmax: a block of the shares; forward three numbers a query: sum_n t_n (d_n - nearest), sum_n t_n, which
backward reads again, and the largest. Moved: the shares [Q, N] once forward; backward as often as distances are found; their gradient once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._distance import INFINITY
from ._targets import that_count


@triton.jit
def load_shares(shares, row, in_q, n, N, dtype: tl.constexpr):
    """[Q, N]."""
    return tl.load(shares + row[:, None] * N + n[None, :], in_q[:, None] & (n[None, :] < N), 0.0).to(dtype)


@triton.jit
def known_total(total, share, n, out):
    """A total [Q]; NaN, as all is that comes of it, where the prototype that does not count has a share. Of shares too: a loop that only
    adds what a block sums to its total stops Triton 3.6's compiler where the total has two uses."""
    wrong = (n[None, :] == out[:, None]) & (share != 0)
    return tl.where(tl.max(wrong.to(tl.int32), 1) > 0, float("nan"), total)


@triton.jit
def online_shares(farther, total, nearest, new_nearest, distance, share, n, N, out):
    """Take a block of shares [Q, N] into the sums [Q] of t_n (d_n - nearest), whose nearest becomes another, and of t_n."""
    old = tl.where(nearest == INFINITY, 0.0, nearest)
    new = tl.where(new_nearest == INFINITY, 0.0, new_nearest)
    farther += total * (old - new)
    away = tl.where(that_count(n, N, out), distance - new[:, None], 0.0)
    return farther + tl.sum(share * away, 1), total + tl.sum(share, 1)


@triton.jit
def online_largest(most, place, share, n, N):
    """The largest share so far, and the first prototype that has it."""
    there = tl.where(n[None, :] < N, share, -INFINITY)
    here = tl.max(there, 1)
    first = tl.min(tl.where(there == here[:, None], n.to(tl.int32)[None, :], N), 1)
    return tl.maximum(most, here), tl.where(here > most, first, place)


@triton.jit
def softmax_share(total, SMOOTHING: tl.constexpr):
    """What a query wants of all prototypes together, [Q], which its softmax is multiplied by: (1 - s) sum_n t_n + s."""
    if SMOOTHING == 0:
        return total
    else:
        return tl.full((1,), 1 - SMOOTHING, total.dtype) * total + tl.full((1,), SMOOTHING, total.dtype)


@triton.jit
def store_dshares(dshares, weight, log_p, row, n, N, out, inside, SMOOTHING: tl.constexpr):
    """The gradient of a block of shares, a query's weight times -log p; 0 of what does not count."""
    weight *= tl.full((1,), 1 - SMOOTHING, weight.dtype)
    dshare = -weight[:, None] * tl.where(n[None, :] == out[:, None], 0.0, log_p)
    tl.store(dshares + row[:, None] * N + n[None, :], dshare.to(dshares.dtype.element_ty), inside)

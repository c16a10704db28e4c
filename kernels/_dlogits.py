"""The gradient of a block of logits z_qn = -d_qn / temperature: from a loss's cotangent, or from log p's, of the columns or of
their classes. In registers but for 2 numbers a query, and for log p 1 a pair, or 2 with classes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._distance import INFINITY, accurate_log, divide
from ._launch import power_of_two
from ._replaced import online_with_margin, replaced
from ._shares import known_total, load_shares, softmax_share, store_dshares
from ._targets import of_target, online_own, own_log, smoothed_target

FEW_CLASSES = 64  # whose sum each program takes for itself: from the registers, not from a GPU (2026-11-24)


@triton.jit
def dlogits_block(
    distance,
    q,
    n,
    task,
    rate,
    softmax,
    sizes,
    own_rows,
    dtype: tl.constexpr,
    MARGIN: tl.constexpr,
    SMOOTHING: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dL/dz of a block of distances [Q, N], 0 where the distance is given; distances less their query's smallest, which serve dtemperature
    too, as a row of dL/dz sums to 0; and all of dL/dz. Of the queries below `own_rows` the gradient of the shares is stored."""
    (
        nearest,
        log_sum,
        dloss,
        counts,
        targets,
        dlog_probs,
        totals,
        log_probs,
        labels,
        exclude,
        target_distance,
        bias,
        classes,
        own_nearest,
        own_log_sum,
        shares,
        share_sum,
        dshares,
    ) = softmax
    Q, N, _, C, group, ignore_index = sizes
    row = task * Q + q
    in_q = q < Q
    inside = in_q[:, None] & (n[None, :] < N)
    seen = distance
    if dloss is not None:
        if shares is None:
            target = tl.load(targets + row, in_q, ignore_index)
        else:
            share = load_shares(shares, row, in_q, n, N, dtype)
            target = tl.zeros(row.shape, tl.int64)  # any that is not ignored: ignore_index is negative
        if bias is not None:
            bias += task * N
        if classes is not None:
            classes += task * N
        given = exclude, target_distance, bias, classes
        seen, target, out = replaced(distance, n, N, row, in_q, target, rate, given, ignore_index)
    if ONE_BLOCK and dloss is not None:  # probabilities that sum to 1, whatever the bits of the distances are
        least, total = tl.full(row.shape, INFINITY, dtype), tl.zeros(row.shape, dtype)
        there = tl.where(n[None, :] < N, seen, INFINITY)
        at_target = of_target(n, N, target, out, classes)
        least, total = online_with_margin(least, total, there, rate, at_target, MARGIN)
        if shares is not None:
            total, share_total = known_total(total, share, n, out), tl.sum(share, 1)
        log_total = accurate_log(total)
        if classes is not None:
            own_least, own_total = tl.full(row.shape, INFINITY, dtype), tl.zeros(row.shape, dtype)
            own_least, own_total = online_own(own_least, own_total, seen, rate, at_target)
            log_own = own_log(own_total)
    else:
        least = tl.load(nearest + row, in_q, 0.0)
        log_total = tl.load(log_sum + row, in_q, 0.0)
        if classes is not None:
            own_least = tl.load(own_nearest + row, in_q, 0.0)
            log_own = tl.load(own_log_sum + row, in_q, 0.0)
        if shares is not None:
            share_total = tl.load(share_sum + row, in_q, 0.0)
    farther = distance - least[:, None]
    log_p = -(seen - least[:, None]) * rate - log_total[:, None]
    if dloss is not None:
        shared = task * (Q // group) + q.to(tl.int32) // group  # `group` queries share a cotangent
        weight = tl.load(dloss + shared, in_q, 0.0).to(dtype)
        if counts is not None:
            weight = divide(weight, tl.load(counts + shared, in_q, 1.0))
        if shares is None:
            known = (target >= 0) & (target < N) if classes is None else own_least < INFINITY
            weight = tl.where(known, weight, float("nan"))
            weight = tl.where(target == ignore_index, 0.0, weight)
        at_target = of_target(n, N, target, out, classes)
        if MARGIN != 0:
            log_p -= tl.where(at_target, tl.full((1, 1), MARGIN, log_p.dtype), 0.0)
        p = tl.exp(log_p)
        if shares is not None:
            own = share
            p *= softmax_share(share_total, SMOOTHING)[:, None]
            if dshares is not None:
                owned = inside & (q < own_rows)[:, None]
                store_dshares(dshares, weight, log_p, row, n, N, out, owned, SMOOTHING)
        elif classes is None:
            own = tl.where(at_target, 1.0, 0.0)
        else:
            log_share = (own_least[:, None] - seen) * rate - log_own[:, None]
            own = tl.exp(tl.where(at_target, log_share, -INFINITY))
        if SMOOTHING != 0:
            own = smoothed_target(own, n, N, out, dtype, SMOOTHING)
        dlogits = weight[:, None] * (p - own)
        whole = dlogits
        if target_distance is not None:  # of whose gradient see `target_gradients`
            dlogits = tl.where(at_target, 0.0, dlogits)
    else:
        if totals is not None:
            dlog_total = tl.load(totals + row, in_q, 0.0).to(dtype)
        else:
            dlog_total = _row_total(dlog_probs, log_probs, row, in_q, C, dtype, BLOCK_C)
        column = (n if labels is None else tl.load(labels + task * N + n, n < N, -1))[None, :]
        known = inside & (column >= 0) & (column < C)
        dlog_p = tl.load(dlog_probs + row[:, None] * C + column, known, 0.0).to(dtype)
        if labels is not None:  # times the column's share of its class
            dlog_p *= tl.exp(log_p - tl.load(log_probs + row[:, None] * C + column, known, 0.0))
        dlogits = dlog_p - tl.exp(log_p) * dlog_total[:, None]
        whole = dlogits
    return tl.where(inside, dlogits, 0.0), farther, tl.where(inside, whole, 0.0)


@triton.jit
def _row_total(dlog_probs, log_probs, row, in_q, C, dtype: tl.constexpr, BLOCK_C: tl.constexpr):
    """sum_k dlog p_k of each query, without the empty classes; NaN where log p is NaN."""
    k = tl.arange(0, BLOCK_C)
    inside = in_q[:, None] & (k[None, :] < C)
    value = tl.load(dlog_probs + row[:, None] * C + k[None, :], inside, 0.0).to(dtype)
    if log_probs is not None:
        log_p = tl.load(log_probs + row[:, None] * C + k[None, :], inside, 0.0)
        value = tl.where(log_p == -INFINITY, 0.0, value + (log_p - log_p))
    return tl.sum(value, 1)


def class_block(dlog_probs: Tensor | None) -> int:
    return 1 if dlog_probs is None else power_of_two(dlog_probs.shape[-1], 1, FEW_CLASSES)


def row_totals(dlog_probs: Tensor | None, log_probs: Tensor | None) -> Tensor | None:
    """The same of many classes, which each program would otherwise read anew; None for few."""
    if dlog_probs is None or dlog_probs.shape[-1] <= FEW_CLASSES:
        return None
    dlog_probs = dlog_probs.double() if dlog_probs.dtype == torch.float64 else dlog_probs.float()
    if log_probs is None:
        return dlog_probs.sum(-1)
    return torch.where(log_probs == -torch.inf, 0, dlog_probs + (log_probs - log_probs)).sum(-1)


@triton.jit
def distance_coefficient(dlogits, distance, rate, METRIC: tl.constexpr):
    """w with dx = sum w (x - c): the gradient of the square twice, or that of the distance over the distance."""
    if METRIC == "euclidean":
        return tl.where(distance == 0, 0.0, -rate * dlogits / tl.where(distance == 0, 1.0, distance))  # NaN stays
    elif METRIC == "sqeuclidean":
        return -2 * rate * dlogits
    else:  # of the unit vectors
        return -rate * dlogits

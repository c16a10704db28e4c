"""proto_loss's forward kernel: a program owns BLOCK_Q queries of a task and walks the prototypes; see proto_loss.py."""

from __future__ import annotations

import triton
import triton.language as tl

from ._distance import (
    INFINITY,
    accurate_log,
    block_of_rows,
    distance_block,
    load_rate,
    scale_of,
)
from ._loss_sums import add_up
from ._replaced import online_with_margin, replaced
from ._shares import known_total, load_shares, online_largest, online_shares
from ._targets import of_target, online_own, online_sum, own_log, smoothed_loss


@triton.jit(
    do_not_specialize=(
        "first_task",
        "first_row",
        "rows",
        "query_stride",
        "prototypes_stride",
        "scale_stride",
        "Q",
        "N",
        "ignore_index",
    )
)
def _proto_loss_fwd_kernel(
    query,
    prototypes,
    targets,
    shares,
    exclude,
    target_distance,
    bias,
    classes,
    temperature_tensor,
    temperature_value: tl.float64,
    losses,
    hits,
    parts,
    counter,
    counts,
    nearest,
    log_sum,
    query_scale,
    prototype_scale,
    own_nearest,
    own_log_sum,
    share_sum,
    products,
    x_square,
    y_square,
    query_stride,
    prototypes_stride,
    scale_stride,
    Q,
    N,
    D,
    first_task,
    first_row,
    rows,
    WIDTH,
    ignore_index,
    dtype: tl.constexpr,
    METRIC: tl.constexpr,
    MARGIN: tl.constexpr,
    SMOOTHING: tl.constexpr,
    NEAR: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    task, q, place = block_of_rows(tl.program_id(0), rows, first_task, first_row, BLOCK_Q)
    q_blocks = tl.cdiv(rows, BLOCK_Q)
    q_block = tl.program_id(0) % q_blocks
    query += task * query_stride * D
    prototypes += task * prototypes_stride * D
    row = task * Q + q  # [BLOCK_Q]
    if products is not None:
        x_square, y_square = x_square + task * Q, y_square + task * WIDTH
    if bias is not None:
        bias += task * scale_stride
    if classes is not None:
        classes += task * scale_stride
    given = products, place * WIDTH, x_square, y_square, WIDTH, NEAR
    instead = exclude, target_distance, bias, classes
    last = first_row + rows
    rate = load_rate(temperature_tensor, temperature_value, dtype)
    if shares is None:
        target = tl.load(targets + row, q < last, ignore_index)
    else:
        target = tl.zeros((BLOCK_Q,), tl.int64)  # any that is not ignored: ignore_index is negative
    x_scale = scale_of(query, query_scale, task * Q, q, last, D, products, dtype, METRIC, BLOCK_Q, BLOCK_D)
    least = tl.full((BLOCK_Q,), INFINITY, dtype)
    total = tl.zeros((BLOCK_Q,), dtype)
    picked = tl.zeros((BLOCK_Q,), dtype)
    counted = target
    closest, first = tl.full((BLOCK_Q,), INFINITY, dtype), tl.full((BLOCK_Q,), -1, tl.int64)
    own_least, own_total = tl.full((BLOCK_Q,), INFINITY, dtype), tl.zeros((BLOCK_Q,), dtype)
    of_shares, share_total = tl.zeros((BLOCK_Q,), dtype), tl.zeros((BLOCK_Q,), dtype)
    most, largest = tl.full((BLOCK_Q,), -INFINITY, dtype), tl.zeros((BLOCK_Q,), tl.int32)
    farther, out = tl.zeros((BLOCK_Q,), dtype), tl.full((BLOCK_Q,), -1, tl.int64)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N).to(tl.int64)
        c_scale = scale_of(
            prototypes, prototype_scale, task * scale_stride, n, N, D, products, dtype, METRIC, BLOCK_N, BLOCK_D
        )
        distance, _ = distance_block(
            query, prototypes, q, n, last, N, D, x_scale, c_scale, given, dtype, METRIC, BLOCK_Q, BLOCK_N, BLOCK_D
        )
        distance, counted, out = replaced(distance, n, N, row, q < last, target, rate, instead, ignore_index)
        distance = tl.where(n[None, :] < N, distance, INFINITY)
        at_target = of_target(n, N, counted, out, classes)
        if hits is not None:
            here = tl.min(distance, 1)
            place_here = tl.min(tl.where(distance == here[:, None], n[None, :], N), 1)
            first = tl.where(here < closest, place_here, first)
            closest = tl.minimum(closest, here)
        before = least
        least, total = online_with_margin(least, total, distance, rate, at_target, MARGIN)
        if shares is not None:
            share = load_shares(shares, row, q < last, n, N, dtype)
            total = known_total(total, share, n, out)
            share_total = known_total(share_total, share, n, out)
            of_shares, share_total = online_shares(of_shares, share_total, before, least, distance, share, n, N, out)
            if hits is not None:
                most, largest = online_largest(most, largest, share, n, N)
        elif classes is None:
            picked += tl.sum(tl.where(at_target, distance, 0.0), 1)
        else:
            own_least, own_total = online_own(own_least, own_total, distance, rate, at_target)
        if SMOOTHING != 0:
            farther = online_sum(farther, before, least, distance, start, n, N, out)
        if prototype_scale is not None and products is None:
            tl.store(prototype_scale + task * scale_stride + n, c_scale, n < tl.where(q_block == 0, N, 0))
    log_total = accurate_log(total)
    if nearest is not None:
        tl.store(nearest + row, least, q < last)
        tl.store(log_sum + row, log_total, q < last)
    if query_scale is not None and products is None:
        tl.store(query_scale + row, x_scale, q < last)
    if shares is not None:
        loss, known = of_shares * rate + share_total * log_total, q < last  # NaN already where it is not known
        if share_sum is not None:
            tl.store(share_sum + row, share_total, q < last)
    elif classes is None:
        loss = (picked - least) * rate + tl.full((1,), MARGIN, dtype) + log_total
        known = (counted >= 0) & (counted < N)
    else:
        log_own = own_log(own_total)
        loss = (own_least - least) * rate + (log_total - log_own)
        known = own_least < INFINITY
        if own_nearest is not None:
            tl.store(own_nearest + row, own_least, q < last)
            tl.store(own_log_sum + row, log_own, q < last)
    if SMOOTHING != 0:
        loss = smoothed_loss(loss, farther, N, out, rate, log_total, MARGIN, SMOOTHING)
    loss = tl.where(known, loss, float("nan"))
    if shares is None:
        loss, has_target = tl.where(target == ignore_index, 0.0, loss), target != ignore_index
    else:
        loss, has_target = tl.where(q < last, loss, 0.0), q < last
    if hits is not None:
        if classes is not None:
            first = tl.load(classes + first, first >= 0, ignore_index)
        hit = (first == (target if shares is None else largest)) & has_target & (loss == loss)
        tl.store(hits + row, hit.to(hits.dtype.element_ty), q < last)
    if parts is None:
        tl.store(losses + row, loss.to(losses.dtype.element_ty), q < last)
    else:
        counted = tl.sum(tl.where(has_target, 1.0, 0.0).to(dtype), 0)
        add_up(losses, parts, counter, counts, tl.sum(loss, 0), counted, task, q_block, q_blocks, dtype, MEAN)

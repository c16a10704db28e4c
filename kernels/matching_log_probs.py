"""log p(y = k | x) = logsumexp over the support of class k - logsumexp over all, of z = -d(x, x_s) / temperature.

Forward, one launch: a program owns BLOCK_Q queries of a task and BLOCK_C classes and walks the support. Distances and, for
all and for each class by itself, the nearest and the online sum of exponentials stay in registers: a class far behind the
nearest one keeps its digits. Moved: query once, the support once a program (from cache), its labels, the output once.
A large support: a launch for each chunk of products, see _products.py.
Backward: see _distance_bwd.py; distances are computed anew, log p is kept.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._distance import INFINITY, accurate_log, block_of_rows, distance_block, load_rate, online_log_sum_exp, scale_of
from ._distance_bwd import distance_gradients
from ._launch import accumulator, launch, power_of_two, task_rows, triton_dtype
from ._products import forward_parts
from ._tiles import forward_sides, kept_arguments, kept_tensors, temperature_arguments, tile_options


@triton.jit
def _class_log_sum_exp(nearest, total, distance, label, first, classes, rate, BLOCK_C: tl.constexpr):
    """Take distances [Q, S] into the running minimum and total of each class, [Q, C]; first <= class < first + classes."""
    column = tl.arange(0, BLOCK_C)[None, :]
    block_nearest, block_total = tl.full(nearest.shape, INFINITY, nearest.dtype), tl.zeros_like(total)
    for k in range(0, classes):
        member = label[None, :] == first + k
        least = tl.min(tl.where(member, distance, INFINITY), 1)  # [Q]
        sums = tl.sum(tl.where(member, tl.exp((least[:, None] - distance) * rate), 0.0), 1)
        block_nearest = tl.where(column == k, least[:, None], block_nearest)
        block_total = tl.where(column == k, sums[:, None], block_total)
    new_nearest = tl.minimum(nearest, block_nearest)
    shift = tl.where(new_nearest == INFINITY, 0.0, new_nearest)  # no example so far
    total = total * tl.exp((shift - nearest) * rate) + block_total * tl.exp((shift - block_nearest) * rate)
    return new_nearest, total


@triton.jit(
    do_not_specialize=("first_task", "first_row", "rows", "query_stride", "support_stride", "row_stride", "Q", "S", "N")
)
def _matching_log_probs_fwd_kernel(
    query,
    support,
    labels,
    temperature_tensor,
    temperature_value: tl.float64,
    log_probs,
    kept_log_probs,
    nearest,
    log_sum,
    query_scale,
    prototype_scale,
    products,
    x_square,
    y_square,
    query_stride,
    support_stride,
    row_stride,
    Q,
    S,
    N,
    D,
    first_task,
    first_row,
    rows,
    WIDTH,
    dtype: tl.constexpr,
    METRIC: tl.constexpr,
    NEAR: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    c_blocks = tl.cdiv(N, BLOCK_C)
    first = (tl.program_id(0) % c_blocks) * BLOCK_C
    index = tl.program_id(0) // c_blocks
    task, q, place = block_of_rows(index, rows, first_task, first_row, BLOCK_Q)
    q_block = index % tl.cdiv(rows, BLOCK_Q)
    query += task * query_stride * D
    support += task * support_stride * D
    labels += task * row_stride
    row = task * Q + q  # [BLOCK_Q]
    if products is not None:
        x_square, y_square = x_square + task * Q, y_square + task * WIDTH
    given = products, place * WIDTH, x_square, y_square, WIDTH, NEAR
    last = first_row + rows
    rate = load_rate(temperature_tensor, temperature_value, dtype)
    x_scale = scale_of(query, query_scale, task * Q, q, last, D, products, dtype, METRIC, BLOCK_Q, BLOCK_D)
    least, total = tl.full((BLOCK_Q,), INFINITY, dtype), tl.zeros((BLOCK_Q,), dtype)
    class_least, class_total = tl.full((BLOCK_Q, BLOCK_C), INFINITY, dtype), tl.zeros((BLOCK_Q, BLOCK_C), dtype)
    classes = tl.minimum(N - first, BLOCK_C)
    for start in range(0, S, BLOCK_N):
        s = start + tl.arange(0, BLOCK_N).to(tl.int64)
        label = tl.load(labels + s, s < S, 0)
        s_scale = scale_of(
            support, prototype_scale, task * row_stride, s, S, D, products, dtype, METRIC, BLOCK_N, BLOCK_D
        )
        distance, _ = distance_block(
            query, support, q, s, last, S, D, x_scale, s_scale, given, dtype, METRIC, BLOCK_Q, BLOCK_N, BLOCK_D
        )
        distance = tl.where(s[None, :] < S, distance, INFINITY)
        outside = tl.max(((label < 0) | (label >= N)).to(tl.int32), 0) > 0
        distance = tl.where(outside, float("nan"), distance)  # the whole task
        least, total = online_log_sum_exp(least, total, distance, rate)
        member = tl.where(s < S, label, -1)
        class_least, class_total = _class_log_sum_exp(
            class_least, class_total, distance, member, first, classes, rate, BLOCK_C
        )
        if prototype_scale is not None and products is None:
            tl.store(prototype_scale + task * row_stride + s, s_scale, s < tl.where(q_block + first == 0, S, 0))
    k = first + tl.arange(0, BLOCK_C)
    out = (least[:, None] - class_least) * rate + accurate_log(class_total) - accurate_log(total)[:, None]
    inside = (q[:, None] < last) & (k[None, :] < N)
    tl.store(log_probs + row[:, None] * N + k[None, :], out.to(log_probs.dtype.element_ty), inside)
    if kept_log_probs is not None:
        tl.store(kept_log_probs + row[:, None] * N + k[None, :], out, inside)
        tl.store(nearest + row, least, q < tl.where(first == 0, last, 0))
        tl.store(log_sum + row, accurate_log(total), q < tl.where(first == 0, last, 0))
    if query_scale is not None and products is None:
        tl.store(query_scale + row, x_scale, q < tl.where(first == 0, last, 0))


def matching_log_probs_fwd(
    query: Tensor,
    support: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    num_classes: int,
    metric: str,
    needs: tuple[bool, ...],
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    log_probs = query.new_empty(*query.shape[:-1], num_classes)
    q, s, by_products = forward_sides(query, support)
    (queries, features), examples = q.shape[1:], s.shape[1]
    options = tile_options(q, examples)
    block_c = power_of_two(num_classes, 1, 32)
    kept = kept_tensors(q, s, metric) if any(needs) or by_products else (None,) * 4
    made, chunks = forward_parts(q, s, metric, kept[2:], by_products)
    kept_log_probs = torch.empty_like(log_probs, dtype=accumulator(query)) if any(needs) else None
    for part, given in chunks:
        launch(
            _matching_log_probs_fwd_kernel,
            part.tasks * triton.cdiv(part.rows, options["BLOCK_Q"]) * triton.cdiv(num_classes, block_c),
            query,
            query=q,
            support=s,
            labels=labels.contiguous(),
            **temperature_arguments(temperature),
            log_probs=log_probs,
            kept_log_probs=kept_log_probs,
            **kept_arguments(kept),
            query_stride=task_rows(q),
            support_stride=task_rows(s),
            row_stride=examples if len(s) > 1 else 0,
            Q=queries,
            S=examples,
            N=num_classes,
            D=features,
            dtype=triton_dtype(query),
            METRIC=metric,
            BLOCK_C=block_c,
            **given,
            **options,
        )
    return (log_probs,), (*kept, *made, kept_log_probs) if any(needs) else ()


def matching_log_probs_bwd(
    cotangents: tuple[Tensor, ...],
    saved: tuple[Tensor, ...],
    query: Tensor,
    support: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    num_classes: int,
    metric: str,
    needs: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    static = num_classes, metric
    *kept, log_probs = saved or matching_log_probs_fwd(query, support, labels, temperature, *static, needs)[1]
    return distance_gradients(
        query,
        support,
        temperature,
        metric,
        kept,
        (needs[0], needs[1], needs[3]),
        dlog_probs=cotangents[0].contiguous(),
        log_probs=log_probs,
        labels=labels.contiguous(),
    )

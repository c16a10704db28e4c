"""loss_q = -log p(y_q | x_q) with p as in proto_log_softmax, without the [Q, N] matrix.

Forward, one launch: a program owns BLOCK_Q queries of a task and walks the prototypes; distances and the online log-sum-exp
stay in registers. Moved: query once, prototypes once a program (from cache), a few numbers a query. For "sum" and "mean" each
program leaves the sum and the count of its queries, and the last of a task, told by a counter, adds them up in their order; the
counters are zeroed before, a launch of its own. What stands in place of distances is in _replaced.py, what counts as target in _targets.py.
Many ways: a launch for each chunk of products, see _products.py; another adds up the losses of a task.
Backward: see _distance_bwd.py; distances are computed anew.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ._distance_bwd import distance_gradients
from ._launch import accumulator, counters, launch, task_rows, triton_dtype
from ._loss_forward import _proto_loss_fwd_kernel
from ._loss_sums import reduce
from ._products import forward_parts
from ._replaced import target_gradients
from ._tiles import forward_sides, kept_arguments, kept_tensors, of_class, temperature_arguments, tile_options


def proto_loss_fwd(
    query: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    exclude: Tensor | None,
    target_distance: Tensor | None,
    bias: Tensor | None,
    classes: Tensor | None,
    metric: str,
    ignore_index: int,
    reduction: str,
    margin: float,
    smoothing: float,
    counts_hits: bool,
    needs: tuple[bool, ...],
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    q, c, by_products = forward_sides(query, prototypes)
    (tasks, queries, features), ways = q.shape, c.shape[1]
    options = tile_options(q, ways)
    blocks = triton.cdiv(queries, options["BLOCK_Q"])
    kept = kept_tensors(q, c, metric) if any(needs) or by_products else (None,) * 4
    made, chunks = forward_parts(q, c, metric, kept[2:], by_products)
    labels, shares = _labels_or_shares(targets)
    own = of_class(q, classes is not None and any(needs))
    share_sum = None
    if shares is not None and any(needs):
        share_sum = q.new_empty(q.shape[:2], dtype=accumulator(query))
    losses = query.new_empty(query.shape[:-1] if reduction == "none" else query.shape[:-2])
    each, parts, counts = losses, None, None
    hits = losses.new_empty(query.shape[:-1], dtype=accumulator(query)) if counts_hits else None
    if reduction != "none":
        counts = losses.new_empty(losses.numel(), dtype=accumulator(query)) if reduction == "mean" else None
        if by_products:  # a task may be several chunks, or a part of one
            each = q.new_empty(tasks, queries, dtype=accumulator(query))
        else:
            parts = q.new_empty(tasks, blocks, 2, dtype=accumulator(query))
        if queries == 0:  # a sum of nothing
            losses.zero_()
    for part, given in chunks:
        launch(
            _proto_loss_fwd_kernel,
            part.tasks * triton.cdiv(part.rows, options["BLOCK_Q"]),
            query,
            query=q,
            prototypes=c,
            targets=labels,
            shares=shares,
            exclude=_dense(exclude),
            target_distance=_dense(target_distance),
            bias=_dense(bias),
            classes=_dense(classes),
            **temperature_arguments(temperature),
            losses=each,
            hits=hits,
            parts=parts,
            counter=None if parts is None else counters(query, tasks),
            counts=None if parts is None else counts,
            **kept_arguments(kept),
            own_nearest=own[0],
            own_log_sum=own[1],
            share_sum=share_sum,
            query_stride=task_rows(q),
            prototypes_stride=task_rows(c),
            scale_stride=ways if len(c) > 1 else 0,
            Q=queries,
            N=ways,
            D=features,
            ignore_index=ignore_index,
            dtype=triton_dtype(query),
            METRIC=metric,
            MARGIN=margin,
            SMOOTHING=smoothing,
            MEAN=reduction == "mean",
            **given,
            **options,
        )
    if each is not losses:
        reduce(each, labels, losses, counts, query.shape[-2], ignore_index)
    outputs = (losses,) if hits is None else (losses, _reduced(hits, labels, reduction, ignore_index).to(losses.dtype))
    return outputs, (*kept, *made, counts, *own, share_sum) if any(needs) else ()


def _reduced(hits: Tensor, targets: Tensor | None, reduction: str, ignore_index: int) -> Tensor:
    if reduction == "none":
        return hits
    total = hits.sum(-1)
    if reduction == "sum":
        return total
    return total / (max(hits.shape[-1], 1) if targets is None else (targets != ignore_index).sum(-1).clamp(min=1))


def proto_loss_bwd(
    cotangents: tuple[Tensor, ...],
    saved: tuple[Tensor, ...],
    query: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    exclude: Tensor | None,
    target_distance: Tensor | None,
    bias: Tensor | None,
    classes: Tensor | None,
    metric: str,
    ignore_index: int,
    reduction: str,
    margin: float,
    smoothing: float,
    counts_hits: bool,
    needs: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    static = metric, ignore_index, reduction, margin, smoothing, counts_hits
    exclude, target_distance, targets = _dense(exclude), _dense(target_distance), targets.contiguous()
    bias, classes = _dense(bias), _dense(classes)
    inputs = query, prototypes, targets, temperature, exclude, target_distance, bias, classes
    *kept, counts, own_nearest, own_log_sum, share_sum = saved or proto_loss_fwd(*inputs, *static, needs)[1]
    dloss, needs = cotangents[0].contiguous(), (*needs, False, False, False)  # of inputs that are not given none
    labels, shares = _labels_or_shares(targets)
    dshares = torch.empty_like(shares) if shares is not None and needs[2] else None
    grads = distance_gradients(
        query,
        prototypes,
        temperature,
        metric,
        kept,
        (needs[0], needs[1], needs[3], needs[6]),
        dloss=dloss,
        counts=counts,
        targets=labels,
        exclude=exclude,
        target_distance=target_distance,
        bias=bias,
        classes=classes,
        own=(own_nearest, own_log_sum),
        shares=shares,
        share_sum=share_sum,
        dshares=dshares,
        margin=margin,
        smoothing=smoothing,
        group=1 if reduction == "none" else query.shape[-2],
        ignore_index=ignore_index,
    )
    place = needs[0] + needs[1]
    if dshares is not None:
        return (*grads[:place], dshares, *grads[place:])
    if target_distance is None or not (needs[3] or needs[5]):
        return grads
    of_distance, of_temperature = target_gradients(
        target_distance, targets, exclude, bias, temperature, kept, dloss, counts, prototypes.shape[-2], ignore_index, margin, smoothing
    )  # fmt: skip
    found = list(grads)
    if needs[3]:
        found[place] = found[place] + of_temperature.to(found[place].dtype)
    if needs[5]:
        found.insert(place + needs[3], of_distance)
    return tuple(found)


def _labels_or_shares(targets: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The targets [T?, Q], or of floating point [T?, Q, N]."""
    targets = targets.contiguous()
    return (None, targets) if targets.is_floating_point() else (targets, None)


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()

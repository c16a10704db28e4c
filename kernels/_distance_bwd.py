"""The gradients of the distance ops, dx_i = sum_j w_ij (x_i - y_j), both sides in one launch and without atomic sums.

A program owns rows of dquery or rows of dprototypes, and BLOCK_E of their features, or all where one block holds every
column; see _distance_sums.py. Where few programs own the prototypes, several share the queries of one block: the last of
them, told by a counter, adds their parts in order. Moved: own rows and gradients once, the other side's rows once a program
(from cache). One more tiny launch each: zeroing the counters, the sum of dtemperature, and row_totals of many columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ._dlogits import class_block, row_totals
from ._gradients import _gradients_kernel
from ._launch import counters, launch, task_rows, triton_dtype
from ._products import Operands
from ._products_bwd import product_gradients
from ._tiles import kept_arguments, merge_tasks, temperature_arguments, tile_options


def distance_gradients(
    query: Tensor,
    prototypes: Tensor,
    temperature: float | Tensor,
    metric: str,
    kept: list[Any],
    needs: tuple[bool, ...],
    *,
    distances: Tensor | None = None,
    dloss: Tensor | None = None,
    counts: Tensor | None = None,
    targets: Tensor | None = None,
    dlog_probs: Tensor | None = None,
    log_probs: Tensor | None = None,
    labels: Tensor | None = None,
    exclude: Tensor | None = None,
    target_distance: Tensor | None = None,
    bias: Tensor | None = None,
    classes: Tensor | None = None,
    own: Sequence[Tensor | None] = (None, None),
    shares: Tensor | None = None,
    share_sum: Tensor | None = None,
    dshares: Tensor | None = None,
    margin: float = 0.0,
    smoothing: float = 0.0,
    group: int = 1,
    ignore_index: int = 0,
) -> tuple[Tensor, ...]:
    """The gradients of query, prototypes, temperature and bias, of those that are needed; `kept`: see `kept_tensors`; `own`: of the
    prototypes of the target's class, the distance to the nearest and the log of the sum of exponentials; `dshares` is written."""
    q, c = merge_tasks(query, prototypes)
    kept, made = kept[:4], Operands(*kept[4:])
    dquery, dprototypes = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) if need else None
        for x, need in zip((query, prototypes), needs, strict=False)
    )
    dbias = kept[0].new_empty(c.shape[:2]) if len(needs) > 3 and needs[3] else None
    softmax = {
        "dloss": dloss,
        "counts": counts,
        "targets": targets,
        "dlog_probs": dlog_probs,
        "totals": row_totals(dlog_probs, log_probs),
        "log_probs": log_probs,
        "labels": labels,
        "exclude": exclude,
        "target_distance": target_distance,
        "bias": bias,
        "classes": classes,
        "own_nearest": own[0],
        "own_log_sum": own[1],
        "shares": shares,
        "share_sum": share_sum,
        "dshares": dshares,
        "MARGIN": margin,
        "SMOOTHING": smoothing,
        "group": group,
        "ignore_index": ignore_index,
        "C": 1 if dlog_probs is None else dlog_probs.shape[-1],
        "BLOCK_C": class_block(dlog_probs),
    }
    wanted = dquery, dprototypes, dbias, needs[2], softmax
    if made.x is None:
        dtemperature = _by_differences(q, c, temperature, metric, kept, distances, *wanted)
    else:
        dtemperature = product_gradients(q, c, temperature, metric, kept, made, *wanted)
    grads = [x for x in (dquery, dprototypes) if x is not None]
    if dtemperature is not None and isinstance(temperature, Tensor):
        grads.append(dtemperature.sum().to(temperature.dtype))
    if bias is not None and dbias is not None:
        grads.append(dbias.to(bias.dtype).view(bias.shape))
    return tuple(grads)


def _by_differences(
    q: Tensor,
    c: Tensor,
    temperature: float | Tensor,
    metric: str,
    kept: list[Any],
    distances: Tensor | None,
    dquery: Tensor | None,
    dprototypes: Tensor | None,
    dbias: Tensor | None,
    with_temperature: bool,
    softmax: dict[str, Any],
) -> Tensor | None:
    """Writes the gradients of q [T, Q, D] and c [T, N, D] that are wanted; returns each query's part in that of the temperature."""
    (tasks, queries, features), ways = q.shape, c.shape[1]
    options = tile_options(q, ways)
    block_e = options["BLOCK_D"]
    one_block = ways <= options["BLOCK_N"]
    dtemperature = torch.empty_like(kept[0]) if with_temperature else None
    of_columns = [x for x in (dprototypes, dbias) if x is not None]
    for x in of_columns:
        if queries == 0:
            x.zero_()
    e_blocks = max(triton.cdiv(features, block_e), 1)
    prototype_e = 1 if dprototypes is None else e_blocks
    query_e = 1 if one_block or dquery is None else e_blocks
    of_queries = dquery is not None or with_temperature or softmax["dshares"] is not None
    query_programs = tasks * triton.cdiv(queries, options["BLOCK_Q"]) * query_e if of_queries else 0
    slots = tasks * triton.cdiv(ways, options["BLOCK_N"]) * prototype_e if of_columns and queries else 0
    splits = max(min(triton.cdiv(queries, 8 * options["BLOCK_Q"]), 512 // max(slots, 1)), 1)
    shared = slots > 0 and splits > 1
    parts = kept[0].new_empty(splits if shared and dprototypes is not None else 0, *c.shape)
    launch(
        _gradients_kernel,
        query_programs + splits * slots,
        q,
        query=q,
        prototypes=c,
        **temperature_arguments(temperature),
        **kept_arguments(kept),
        **softmax,
        distances=distances,
        dquery=dquery,
        dprototypes=dprototypes,
        dtemperature=dtemperature,
        dbias=dbias,
        parts=parts,
        bias_parts=None if dbias is None else dbias.new_empty(splits if shared else 0, *dbias.shape),
        counter=counters(q, slots if shared else 0),
        query_programs=query_programs,
        query_stride=task_rows(q),
        prototypes_stride=task_rows(c),
        query_e=query_e,
        prototype_e=prototype_e,
        T=tasks,
        Q=queries,
        N=ways,
        D=features,
        splits=splits,
        share=triton.cdiv(triton.cdiv(queries, splits), options["BLOCK_Q"]) * options["BLOCK_Q"],
        dtype=triton_dtype(q),
        METRIC=metric,
        ONE_BLOCK=one_block,
        BLOCK_E=block_e,
        **options,
    )
    return dtemperature

"""The gradients of the distance ops from products that torch makes; the scheme is in _products.py.

Of each part of the queries: products, unless kept; weights and near pairs; sums over prototypes and over queries, by torch; what near
pairs add to both. After all parts the gradients, a launch for each side. In memory: both sums in float32, and three arrays of a
part: products, weights, and the weights of near pairs, which take the place of products that are not kept.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ._launch import launch, power_of_two, task_rows, triton_dtype
from ._product_rows import gradient_kernel
from ._product_weights import near_kernel, weights_kernel
from ._products import (
    Operands,
    Part,
    arguments,
    memory_of,
    multiply,
    multiply_part,
    near_share,
    of_part,
    own_rows,
    parts,
    place,
    rounded,
    row_launch,
)
from ._tiles import kept_arguments, temperature_arguments, tile_options

NEAR_ROWS = 16  # prototypes of a program that adds near pairs: no more than a block of weights has


def product_gradients(
    q: Tensor,
    c: Tensor,
    temperature: float | Tensor,
    metric: str,
    kept: list[Any],
    made: Operands,
    dquery: Tensor | None,
    dprototypes: Tensor | None,
    dbias: Tensor | None,
    with_temperature: bool,
    softmax: dict[str, Any],
) -> Tensor | None:
    """Writes the gradients of q [T, Q, D] and c [T, N, D] that are wanted; returns each query's parts in that of the temperature."""
    (tasks, queries, features), ways = q.shape, c.shape[1]
    width, blocks = made.y.shape[1], tile_options(q, ways)
    whole = parts(q, c, width)
    weights = memory_of(made.x, whole, width)
    close = memory_of(made.x_square, whole, width)  # products, until weights are found
    n_blocks = triton.cdiv(ways, blocks["BLOCK_N"])
    dtemperature = made.mean.new_empty(tasks, queries, n_blocks, dtype=kept[0].dtype) if with_temperature else None
    flags = torch.empty(
        max(part.tasks * triton.cdiv(part.rows, blocks["BLOCK_Q"]) for part in whole) * n_blocks,
        dtype=torch.int32,
        device=q.device,
    )
    factor = half_factor(q, temperature, metric, kept[0], softmax)
    of_query, of_prototypes = (
        None if gradient is None else kept[0].new_empty(*x.shape[:2], x.shape[2])
        for gradient, x in ((dquery, made.x), (dprototypes, made.y))
    )
    bias_parts = None if dbias is None else dbias.new_empty(len(flags) // n_blocks, ways)
    sides = {
        "query": q,
        "prototypes": c,
        "query_stride": task_rows(q),
        "prototypes_stride": task_rows(c),
        "scale_stride": ways if len(c) > 1 else 0,
        "Q": queries,
        "N": ways,
        "D": features,
        "dtype": triton_dtype(q),
    }
    for part in whole:
        known = made.product
        product = multiply_part(made, part, close) if known is None else of_part(known, part, width)
        launch(
            weights_kernel,
            part.tasks * triton.cdiv(part.rows, blocks["BLOCK_Q"]) * n_blocks,
            q,
            **sides,
            **arguments(part, product, made, near_share(q, metric)),
            **temperature_arguments(temperature),
            **kept_arguments(kept),
            **softmax,
            weights=weights,
            close=close,
            flags=flags,
            factor=factor,
            dtemperature=dtemperature,
            dbias=bias_parts,
            METRIC=metric,
            TF32=rounded(q),
            **blocks,
        )
        w, near = of_part(weights, part, width), of_part(close, part, width)
        _sum(made, part, w, of_query, of_prototypes)
        if dbias is not None and bias_parts is not None:
            _sum_bias(part, bias_parts, dbias, blocks["BLOCK_Q"])
        for sums in (of_query, of_prototypes):
            if sums is not None:
                _add_near(part, near, flags, sums, sides, kept, blocks, sums is of_query)
    centre = {"mean": made.mean, "variance": made.variance, "ONES": made.ones, "factor": factor}
    for x, scale, sums, out in ((q, kept[2], of_query, dquery), (c, kept[3], of_prototypes, dprototypes)):
        if sums is not None:
            row_launch(
                gradient_kernel, x, x.shape[1], scale=scale, sums=sums, sum_rows=sums.shape[1], out=out, **centre
            )
    return dtemperature


def _sum(made: Operands, part: Part, w: Tensor, of_query: Tensor | None, of_prototypes: Tensor | None) -> None:
    """The products of weights and operands of a part."""
    tasks = slice(part.first_task, part.first_task + part.tasks)
    if of_query is not None:
        multiply(w, made.y[tasks], own_rows(of_query, part))
    if of_prototypes is not None:
        multiply(w.mT, own_rows(made.x, part), of_prototypes[tasks], add=part.first_row > 0)


def _sum_bias(part: Part, parts: Tensor, dbias: Tensor, block_q: int) -> None:
    """Adds up what the blocks of queries of a part left."""
    blocks = triton.cdiv(part.rows, block_q)
    found = parts[: part.tasks * blocks].view(part.tasks, blocks, dbias.shape[1]).sum(1)
    own = dbias[part.first_task : part.first_task + part.tasks]
    if part.first_row > 0:
        own += found
    else:
        own.copy_(found)


def _add_near(
    part: Part,
    close: Tensor,
    flags: Tensor,
    sums: Tensor,
    sides: dict[str, Any],
    kept: list[Any],
    blocks: dict[str, Any],
    of_query: bool,
) -> None:
    rows, own = (part.rows, blocks["BLOCK_Q"]) if of_query else (sides["N"], NEAR_ROWS)
    block_e = power_of_two(sides["D"], 16, 256 if of_query else 64)
    e_blocks = triton.cdiv(sides["D"], block_e)
    launch(
        near_kernel,
        part.tasks * triton.cdiv(rows, own) * e_blocks,
        sides["query"],
        **sides,
        query_scale=kept[2],
        prototype_scale=kept[3],
        close=close,
        flags=flags,
        sums=sums,
        **place(part),
        WIDTH=close.shape[2],
        ONES=sums.shape[2] - 8,
        e_blocks=e_blocks,
        OF_QUERY=of_query,
        BLOCK_Q=blocks["BLOCK_Q"],
        BLOCK_N=blocks["BLOCK_N"],
        BLOCK_I=own,
        BLOCK_E=block_e,
        num_warps=4,
    )


def half_factor(
    q: Tensor, temperature: float | Tensor, metric: str, nearest: Tensor, softmax: dict[str, Any]
) -> Tensor | None:
    """What brings the weights of float16 into its range: 2^12 for a probability of 1, at the mean distance of a nearest one."""
    if q.dtype != torch.float16:
        return None
    cotangent, counts = (softmax["dloss"], softmax["counts"])
    size = softmax["dlog_probs"] if cotangent is None else cotangent
    size = size.float() if counts is None else size.float().flatten() / counts.flatten()
    size = size.abs().amax()
    if (total := softmax["share_sum"]) is not None:
        size = size * total.abs().nan_to_num(0.0, 0.0).amax()
    typical = nearest.nan_to_num(1.0, 1.0).mean() if metric == "euclidean" else 0.5
    factor = 4096.0 * typical * temperature / size
    return torch.where((factor > 0) & (factor < torch.inf), factor, 1.0)

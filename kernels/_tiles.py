"""What the launchers of the distance ops share: block shapes, the temperature, what forward keeps for backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._launch import accumulator, dense, power_of_two

FEW = 32  # columns that differences serve best
EIGHT_WARPS = 4 if torch.version.hip else 8  # of 32 threads; AMD's have 64


def tile_options(query: Tensor, columns: int) -> dict[str, Any]:
    """Blocks for queries [T, Q, D] and so many columns: loads of 16 bytes where the length of rows allows it, few queries cut
    finer, to fill the device. PRECISION is that of tl.dot, None for differences."""
    tasks, queries, features = query.shape
    size = query.element_size()
    if columns > FEW and features >= 16 and size <= 4:
        tf32 = size == 2 or torch.backends.cuda.matmul.allow_tf32  # it has all digits of float16 and bfloat16
        block_q = 64 if tasks * queries >= 128 * 64 else 32
        if tf32:
            return {"BLOCK_Q": block_q, "BLOCK_N": 32, "BLOCK_D": 32, "PRECISION": "tf32", "num_warps": 4}
        return {"BLOCK_Q": block_q, "BLOCK_N": 64, "BLOCK_D": 16, "PRECISION": "ieee", "num_warps": EIGHT_WARPS}
    block_n = power_of_two(columns, 1, FEW if size <= 4 else 16)
    if features % 16:  # not known to be aligned: elements are loaded one by one
        tile, widest = 2048, 16
    elif block_n <= 8:
        tile, widest = 8192, 256 if tasks * queries <= 1024 else 64
    else:
        tile, widest = 8192, 64 if size == 2 else 32
    tile = tile if size <= 4 else tile // 2
    block_d = power_of_two(features, 8, widest)
    block_q = power_of_two(tile // (block_n * block_d), 1, power_of_two(queries, 1, 64))
    blocks = {"BLOCK_Q": block_q, "BLOCK_N": block_n, "BLOCK_D": block_d}
    return {**blocks, "PRECISION": None, "num_warps": 4 if size <= 4 else EIGHT_WARPS}


def gradient_options(query: Tensor, columns: int) -> dict[str, Any]:
    """The same for the gradients, whose programs own BLOCK_E features: the fewer these, the oftener are distances computed."""
    options, features = tile_options(query, columns), query.shape[2]
    if options["PRECISION"] is not None:
        blocks = {"BLOCK_Q": 32, "BLOCK_N": 32, "BLOCK_E": power_of_two(features, 16, 64)}
        return {**options, **blocks, "num_warps": 4 if options["PRECISION"] == "tf32" else EIGHT_WARPS}
    block_n, warps = options["BLOCK_N"], EIGHT_WARPS if options["BLOCK_N"] > 8 else options["num_warps"]
    block_d = power_of_two(features, 16, 32 if features % 16 else 128 if block_n <= 8 else 64)
    tile = 4096 if query.element_size() <= 4 else 2048  # twice: the squares and the sums
    block_q = power_of_two(tile // (block_n * block_d), 1, power_of_two(query.shape[1], 1, 32))
    return {**options, "BLOCK_Q": block_q, "BLOCK_D": block_d, "BLOCK_E": block_d, "num_warps": warps}


def temperature_arguments(temperature: float | Tensor) -> tuple[Tensor | None, float]:
    return (temperature, 1.0) if isinstance(temperature, Tensor) else (None, temperature)


def kept_tensors(query: Tensor, prototypes: Tensor, metric: str) -> tuple[Tensor | None, ...]:
    """For query [T, Q, D] and prototypes [T, N, D]: the distance to the nearest and the log of the sum of exponentials, [T, Q],
    and the inverse norms of both sides, for the cosine alone."""
    nearest = query.new_empty(query.shape[:2], dtype=accumulator(query))
    if metric != "cosine":
        return nearest, torch.empty_like(nearest), None, None
    return nearest, torch.empty_like(nearest), torch.empty_like(nearest), nearest.new_empty(prototypes.shape[:2])


def task_stride(x: Tensor, stride: int) -> int:
    """`stride`, or 0 where all tasks share the one of `x`."""
    return 0 if x.shape[0] == 1 else stride


def merge_tasks(query: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Both as [T, rows, D]; tasks that share their prototypes become one task, so that each gradient has one owner."""
    shared = prototypes.ndim == 2
    query, prototypes = dense(query, 2), dense(prototypes, 2)
    return (query.reshape(1, query.shape[0] * query.shape[1], query.shape[2]) if shared else query), prototypes

"""What the launchers of the distance ops share: block shapes, the temperature, what forward keeps for backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmeta._precision import allows_tf32

from ._launch import accumulator, dense, power_of_two

FEW = 32  # columns that differences serve best: from the registers of the compiled kernels, not from a GPU (2026-11-24)


def tile_options(query: Tensor, columns: int) -> dict[str, Any]:
    """Blocks for queries [T, Q, D] and so many columns: loads of 16 bytes where the length of rows allows it. PRECISION is that
    of tl.dot, None for differences.

    Backward takes the same blocks as forward: with distances of the same bits, the probabilities that it computes from the
    nearest and the log-sum-exp sum to 1, where a distance's last bit is large against the temperature. In its registers are
    the squares and the sums, [BLOCK_Q, BLOCK_N, BLOCK_D] each for differences."""
    features, size = query.shape[2], query.element_size()
    if columns > FEW and features >= 16 and size <= 4:
        tf32 = size == 2 or allows_tf32("matmul")  # it has all digits of float16 and bfloat16
        if tf32:
            blocks = {"BLOCK_Q": 16, "BLOCK_N": 32, "BLOCK_D": power_of_two(features, 32, 64)}
            return {**blocks, "PRECISION": "tf32", "num_warps": 8}
        return {"BLOCK_Q": 32, "BLOCK_N": 32, "BLOCK_D": 32, "PRECISION": "ieee", "num_warps": 8}
    block_n = power_of_two(columns, 1, FEW if size <= 4 else 16)
    widest = 32 if features % 16 else 128 if block_n <= 8 else 64  # 16: else elements are loaded one by one
    block_d = power_of_two(features, 16, widest)
    tile = 4096 if size <= 4 else 2048
    block_q = power_of_two(tile // (block_n * block_d), 1, power_of_two(query.shape[1], 1, 32))
    blocks = {"BLOCK_Q": block_q, "BLOCK_N": block_n, "BLOCK_D": block_d}
    return {**blocks, "PRECISION": None, "num_warps": 4 if block_n <= 8 and size <= 4 else 8}


def gradient_options(query: Tensor, columns: int) -> dict[str, Any]:
    """The same, the features that a program owns, the fewer the oftener are distances computed, and whether it is to hold less in
    registers: halves, widened as they are loaded, would spill."""
    options = tile_options(query, columns)
    if options["PRECISION"] is None:
        return {**options, "BLOCK_E": options["BLOCK_D"], "TIGHT": False}
    widest = 128 if options["PRECISION"] == "tf32" else 64
    return {**options, "BLOCK_E": power_of_two(query.shape[2], 16, widest), "TIGHT": query.element_size() == 2}


def temperature_arguments(temperature: float | Tensor) -> dict[str, Any]:
    tensor, value = (temperature, 1.0) if isinstance(temperature, Tensor) else (None, temperature)
    return {"temperature_tensor": tensor, "temperature_value": value}


def kept_tensors(query: Tensor, prototypes: Tensor, metric: str) -> tuple[Tensor | None, ...]:
    """For query [T, Q, D] and prototypes [T, N, D]: the distance to the nearest and the log of the sum of exponentials, [T, Q],
    and the inverse norms of both sides, for the cosine alone."""
    nearest = query.new_empty(query.shape[:2], dtype=accumulator(query))
    if metric != "cosine":
        return nearest, torch.empty_like(nearest), None, None
    return nearest, torch.empty_like(nearest), torch.empty_like(nearest), nearest.new_empty(prototypes.shape[:2])


def kept_arguments(kept: Sequence[Tensor | None]) -> dict[str, Any]:
    return dict(zip(("nearest", "log_sum", "query_scale", "prototype_scale"), kept, strict=True))


def merge_tasks(query: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Both as [T, rows, D]; tasks that share their prototypes become one task, so that each gradient has one owner."""
    shared = prototypes.ndim == 2
    query, prototypes = dense(query, 2), dense(prototypes, 2)
    if shared:  # in one row of memory after the other, which a view of expanded tasks with one query each is not
        query = query.contiguous().view(1, query.shape[0] * query.shape[1], query.shape[2])
    return query, prototypes

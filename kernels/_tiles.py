"""What the launchers of the distance ops share: block shapes, the temperature, what forward keeps for backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._launch import accumulator, dense, power_of_two

FEW = 32  # columns that differences serve best: from the registers of the compiled kernels, not from a GPU (2026-11-24)
PRODUCTS = 1 << 28  # instructions by differences that take as long as nine more launches, by the model of tools/gpu.md
WIDE = 512  # columns of a block of products


def by_products(query: Tensor, columns: int) -> bool:
    """Whether the distances of queries [T, Q, D] to so many columns come from products that torch makes. By differences a call takes 2
    instructions for each pair and feature forward; backward, on each side, 2 and 2 more for every block of 64 features."""
    features = query.shape[2]
    instructions = 6 + 4 * -(-features // 64)
    return columns > FEW and features >= 16 and query.numel() * columns * instructions >= max(PRODUCTS, 1)


def tile_options(query: Tensor, columns: int) -> dict[str, Any]:
    """Blocks for queries [T, Q, D] and so many columns: loads of 16 bytes where the length of rows allows it.

    Backward takes the same blocks as forward: with distances of the same bits, the probabilities that it computes from the
    nearest and the log-sum-exp sum to 1, where a distance's last bit is large against the temperature. In its registers are
    the squares and the sums, [BLOCK_Q, BLOCK_N, BLOCK_D] each for differences."""
    features, size = query.shape[2], query.element_size()
    if by_products(query, columns):
        return {"BLOCK_Q": 4, "BLOCK_N": power_of_two(columns, 16, WIDE), "BLOCK_D": 128, "num_warps": 4}
    block_n = power_of_two(columns, 1, FEW if size <= 4 else 16)
    widest = 32 if features % 16 else 128 if block_n <= 8 else 64  # 16: else elements are loaded one by one
    block_d = power_of_two(features, 16, widest)
    tile = 4096 if size <= 4 else 2048
    block_q = power_of_two(tile // (block_n * block_d), 1, power_of_two(query.shape[1], 1, 32))
    blocks = {"BLOCK_Q": block_q, "BLOCK_N": block_n, "BLOCK_D": block_d}
    return {**blocks, "num_warps": 4 if block_n <= 8 and size <= 4 else 8}


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


def of_class(query: Tensor, wanted: bool) -> tuple[Tensor | None, Tensor | None]:
    """Of each query's [T, Q] own class: the distance to the nearest and the log of the sum of exponentials."""
    if not wanted:
        return None, None
    nearest = query.new_empty(query.shape[:2], dtype=accumulator(query))
    return nearest, torch.empty_like(nearest)


def kept_arguments(kept: Sequence[Tensor | None]) -> dict[str, Any]:
    return dict(zip(("nearest", "log_sum", "query_scale", "prototype_scale"), kept, strict=True))


def forward_sides(query: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Both as [T, rows, D], and whether their distances come from products: then as for backward, whose products are to have the
    same bits."""
    q, c = dense(query, 2), dense(prototypes, 2)
    return (*merge_tasks(q, prototypes), True) if by_products(q, c.shape[1]) else (q, c, False)


def merge_tasks(query: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Both as [T, rows, D]; tasks that share their prototypes become one task, so that each gradient has one owner."""
    shared = prototypes.ndim == 2
    query, prototypes = dense(query, 2), dense(prototypes, 2)
    if shared:  # in one row of memory after the other, which a view of expanded tasks with one query each is not
        query = query.contiguous().view(1, query.shape[0] * query.shape[1], query.shape[2])
    return query, prototypes

"""The distance block and its gradient, which proto_log_softmax and proto_loss share.

Forward, inlined in their kernels: a program owns BLOCK_Q queries and walks the prototypes in blocks of BLOCK_N. The
squared differences of a block stay in registers, [BLOCK_Q, BLOCK_N, BLOCK_D], summed over D once at its end: 2
instructions per (q, n, d); rows come through shared memory, loaded ahead. Backward: see `_distances_bwd_kernel`.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import accumulator, dense, launch, power_of_two, triton_dtype

BLOCK_X = 8
INFINITY = tl.constexpr(float("inf"))


def metric_limit(metric: str) -> str | None:
    """Why there is no kernel for the metric, or None."""
    return None if metric in ("euclidean", "sqeuclidean") else f"has no kernel for the metric {metric!r}"


def tile_options(query: Tensor, prototypes: Tensor) -> dict[str, int]:
    """Blocks for query [T, Q, D] and prototypes [T, N, D]: loads of 16 bytes where the length of rows allows it,
    long rows of few queries cut finer, to fill the device."""
    tasks, queries, features = query.shape
    size = query.element_size()
    block_n = power_of_two(prototypes.shape[1], 1, 16)
    if features % 16:  # not known to be aligned: elements are loaded one by one
        tile, widest = 2048, 16
    elif block_n <= 8:
        tile, widest = 8192, 256 if tasks * queries <= 1024 else 64
    else:
        tile, widest = 8192, 64 if size == 2 else 32
    tile = tile if size <= 4 else tile // 2
    block_d = power_of_two(features, 8, widest)
    block_q = power_of_two(tile // (block_n * block_d), 1, power_of_two(queries, 1, 64))
    return {"BLOCK_Q": block_q, "BLOCK_N": block_n, "BLOCK_D": block_d, "num_warps": 4 if size <= 4 else 8}


def temperature_arguments(temperature: float | Tensor) -> tuple[Tensor | None, float]:
    return (temperature, 1.0) if isinstance(temperature, Tensor) else (None, temperature)


def merge_tasks(query: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Both as [T, rows, D]; tasks that share their prototypes become one task."""
    shared = prototypes.ndim == 2
    query, prototypes = dense(query, 2), dense(prototypes, 2)
    return (query.reshape(1, query.shape[0] * query.shape[1], query.shape[2]) if shared else query), prototypes


@triton.jit
def divide(x, y):
    """x / y, correctly rounded."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def load_rate(tensor, value, dtype: tl.constexpr):
    """1 / temperature."""
    if tensor is not None:
        return divide(tl.full((), 1, dtype), tl.load(tensor).to(dtype))
    else:
        return divide(tl.full((), 1, dtype), tl.full((), value, dtype))


@triton.jit
def distance_block(
    query,
    prototypes,
    q,
    n,
    Q,
    N,
    D,
    dtype: tl.constexpr,
    SQUARED: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Distances [BLOCK_Q, BLOCK_N] of the rows q < Q of `query` to the rows n < N of `prototypes`."""
    square = tl.zeros((BLOCK_Q, BLOCK_N, BLOCK_D), dtype)
    for start in tl.range(0, D, BLOCK_D, num_stages=3):
        d = start + tl.arange(0, BLOCK_D)
        in_d = d[None, None, :] < D
        c = tl.load(prototypes + n[None, :, None] * D + d[None, None, :], (n[None, :, None] < N) & in_d, 0.0)
        x = tl.load(query + q[:, None, None] * D + d[None, None, :], (q[:, None, None] < Q) & in_d, 0.0)
        difference = x.to(dtype) - c.to(dtype)
        square += difference * difference
    distance = tl.sum(square, 2)
    if not SQUARED:
        distance = tl.sqrt(distance) if dtype == tl.float64 else tl.sqrt_rn(distance)
    return distance


@triton.jit
def online_log_sum_exp(nearest, total, distance, rate):
    """Take distances [Q, N] (inf: no such prototype) into their running minimum [Q] and the total [Q] of
    exp(-rate (distance - minimum)). Subtracting before scaling keeps the digits of large distances."""
    new_nearest = tl.minimum(nearest, tl.min(distance, 1))
    shift = tl.where(new_nearest == INFINITY, 0.0, new_nearest)  # all so far inf: exp gives 0, not NaN
    total *= tl.exp((shift - nearest) * rate)
    return new_nearest, total + tl.sum(tl.exp((shift[:, None] - distance) * rate), 1)


@triton.jit
def accurate_log(x):
    """log in float64: the fast one is off by 2^-22 near 1, where a small loss lives."""
    return tl.log(x.to(tl.float64)).to(x.dtype)


@triton.jit
def distance_coefficient(dlogits, distance, rate, SQUARED: tl.constexpr):
    """w with dx = sum w (x - c): the gradient of the square twice, or that of the distance over the distance."""
    if SQUARED:
        return -2 * rate * dlogits
    else:
        return tl.where(distance > 0, -rate * dlogits / tl.where(distance > 0, distance, 1.0), 0.0)


@triton.jit
def _distances_bwd_kernel(
    coefficients,
    query,
    prototypes,
    dquery,
    dprototypes,
    query_programs,
    query_stride,
    prototypes_stride,
    dquery_stride,
    T,
    Q,
    N,
    D,
    splits,
    dtype: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dx_i = sum_j w_ij (x_i - y_j): query programs own rows of dquery, the others rows of dprototypes (w transposed).

    Owned: BLOCK_ROWS rows by BLOCK_D features, in registers. The other rows are read one by one through the cache, 16
    bytes a thread, BLOCK_X of them in flight: 2 instructions per (row, other row, feature). A split is a share of the
    queries.
    """
    program = tl.program_id(0)
    of_query = program < query_programs
    index = tl.where(of_query, program, program - query_programs)
    rows = tl.where(of_query, Q, N)
    others = tl.where(of_query, N, Q)
    parts = tl.where(of_query, 1, splits)
    d_blocks = tl.cdiv(D, BLOCK_D)
    d = (index % d_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    index = index // d_blocks
    row_blocks = tl.cdiv(rows, BLOCK_ROWS)
    row = ((index % row_blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    index = index // row_blocks
    task = (index % T).to(tl.int64)
    part = (index // T).to(tl.int64)

    own = tl.where(of_query, query, prototypes) + task * tl.where(of_query, query_stride, prototypes_stride)
    other = tl.where(of_query, prototypes, query) + task * tl.where(of_query, prototypes_stride, query_stride)
    w = coefficients + task * Q * N + row[:, None] * tl.where(of_query, N, 1)  # [BLOCK_ROWS, 1]
    w_stride = tl.where(of_query, 1, N).to(tl.int64)
    in_d = d[None, :] < D
    x = tl.load(own + row[:, None] * D + d[None, :], (row[:, None] < rows) & in_d, 0.0).to(dtype)
    dx = tl.zeros((BLOCK_ROWS, BLOCK_D), dtype)
    share = tl.cdiv(tl.cdiv(others, parts), BLOCK_X) * BLOCK_X
    for start in range(part * share, tl.minimum(part * share + share, others), BLOCK_X):
        for i in tl.static_range(BLOCK_X):
            j = start + i
            y = tl.load(other + j * D + d[None, :], d[None, :] < tl.where(j < others, D, 0), 0.0).to(dtype)
            dx += tl.load(w + j * w_stride, row[:, None] < tl.where(j < others, rows, 0), 0.0) * (x - y)
    if dquery is not None:
        out = dquery + task * dquery_stride + row[:, None] * D + d[None, :]
        tl.store(out, dx.to(dquery.dtype.element_ty), (row[:, None] < tl.where(of_query, Q, 0)) & in_d)
    if dprototypes is not None:
        out = dprototypes + ((part * T + task) * N + row[:, None]) * D + d[None, :]
        inside = (row[:, None] < tl.where(of_query, 0, N)) & in_d
        if ACCUMULATE:  # over the launches of one call
            dx += tl.load(out, inside, 0.0).to(dtype)
        tl.store(out, dx.to(dprototypes.dtype.element_ty), inside)


def distance_gradients(
    query: Tensor,
    prototypes: Tensor,
    needs: tuple[bool, ...],
    coefficients: Callable[[int, int], Tensor],
    rows: int,
) -> list[Tensor]:
    """The gradients of query and prototypes, of those that are needed.

    coefficients(first, last) gives [T, last - first, N] for a range of the queries; `rows` are asked for at a time.
    """
    q, c = merge_tasks(query, prototypes)
    tasks, queries, _ = q.shape
    dquery = torch.empty(query.shape, dtype=query.dtype, device=query.device) if needs[0] else None
    splits = prototype_splits(tasks, min(rows, queries), *c.shape[1:])
    in_output = splits == 1 and (rows >= queries or prototypes.dtype == accumulator(query))
    shares, dtype = ((), prototypes.dtype) if in_output else ((splits,), accumulator(query))
    dprototypes = torch.empty(*shares, *prototypes.shape, dtype=dtype, device=query.device) if needs[1] else None
    for first in range(0, max(queries, 1), rows):
        last = min(first + rows, queries)
        w = coefficients(first, last)
        part = None if dquery is None else dquery.view(q.shape)[:, first:last]
        if needs[0] or needs[1]:
            _distances_bwd(w, q[:, first:last], c, part, dprototypes, splits, accumulate=first > 0)
    grads = [] if dquery is None else [dquery]
    if dprototypes is not None:
        grads.append(dprototypes if in_output else dprototypes.sum(0).to(prototypes.dtype))
    return grads


def prototype_splits(tasks: int, queries: int, ways: int, features: int) -> int:
    """How many programs share the queries of a block of prototypes: several where few blocks have many queries."""
    blocks = tasks * triton.cdiv(ways, 32) * triton.cdiv(features, 64)
    return max(min(queries // 128, 512 // max(blocks, 1)), 1)


def _distances_bwd(
    coefficients: Tensor,
    query: Tensor,
    prototypes: Tensor,
    dquery: Tensor | None,
    dprototypes: Tensor | None,
    splits: int,
    accumulate: bool,
) -> None:
    """Fill dquery [T, Q, D] and dprototypes [splits, T, N, D] from coefficients [T, Q, N]; None: not asked for."""
    (tasks, queries, features), ways = query.shape, prototypes.shape[1]
    block_rows = power_of_two(ways, 16 if query.element_size() == 2 else 8, 32 if query.element_size() <= 4 else 16)
    block_d = power_of_two(features, 16, 64)
    d_blocks = triton.cdiv(features, block_d)
    query_programs = 0 if dquery is None else tasks * triton.cdiv(queries, block_rows) * d_blocks
    prototype_programs = 0 if dprototypes is None else splits * tasks * triton.cdiv(ways, block_rows) * d_blocks
    launch(
        _distances_bwd_kernel,
        query_programs + prototype_programs,
        query,
        coefficients,
        query,
        prototypes,
        dquery,
        dprototypes,
        query_programs,
        query.stride(0),
        prototypes.stride(0),
        0 if dquery is None else dquery.stride(0),
        tasks,
        queries,
        ways,
        features,
        splits,
        dtype=triton_dtype(query),
        ACCUMULATE=accumulate,
        BLOCK_ROWS=block_rows,
        BLOCK_X=BLOCK_X,
        BLOCK_D=block_d,
        num_warps=4,
    )

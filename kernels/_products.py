"""The distance ops by products that torch makes (cuBLAS), in chunks of queries, with Triton's kernels at their ends.

Operands: x = q - m, y = c - m in the queries' dtype, rounded to TF32 where torch's products are; their squares. Forward, of each chunk:
products P = x y^T in float32, from which the ends have |x|^2 + |y|^2 - 2 P (_distance.py). Backward: P again, where not kept; the
weights w of the gradients in its place; then, near pairs apart,

    dq_i = sum_j w_ij (q_i - c_j) = (sum_j w_ij) x_i - sum_j w_ij y_j,  dc_j likewise,

two more products; a column of ones at the end of y and x gives the sums of w. A pass over float32 products takes as long as
products over few hundred features, so that no tile of ours would win by keeping them; see tools/gpu.md.
Where m is no larger than four deviations halves keep their digits: m is 0. w of float16 is scaled into its range; what still is
outside goes with the near pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from fastmeta._precision import allows_tf32

from ._launch import accumulator, launch, power_of_two, task_rows, triton_dtype
from ._product_rows import operands_kernel, scales_kernel

CHUNK = 1 << 25  # bytes of products at a time, at least; as many as the inputs hold in float32, where that is more


class Operands(NamedTuple):
    """What forward leaves for backward."""

    x: Tensor  # [T, Q, ones + 8]: q - m, zeros, a 1 at `ones`
    y: Tensor  # [T, width, ones + 8]: c - m, likewise; zeros from N on
    x_square: Tensor  # [T, Q]
    y_square: Tensor  # [T, width]
    mean: Tensor  # [T, D]
    variance: Tensor | None  # [T, D], of halves
    product: Tensor | None  # [T, Q, width], where one chunk holds all

    @property
    def ones(self) -> int:
        return self.x.shape[-1] - 8


NOTHING = (None,) * len(Operands._fields)


class Part(NamedTuple):
    """Some tasks, or some queries of one task."""

    first_task: int
    tasks: int
    first_row: int
    rows: int


def parts(q: Tensor, c: Tensor, width: int) -> list[Part]:
    (tasks, queries, _), size = q.shape, accumulator(q).itemsize
    rows = max(CHUNK, (q.numel() + c.numel()) * size) // (width * size)
    if rows >= queries:
        each = rows // max(queries, 1)
        return [Part(t, min(each, tasks - t), 0, queries) for t in range(0, tasks, each)]
    rows = max(rows // 16, 1) * 16
    starts = range(0, queries, rows)
    return [Part(t, 1, row, min(rows, queries - row)) for t in range(tasks) for row in starts]


def multiply(a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> None:
    """a b into `out`, or added to it; of halves in float32. Only calls with `out` are not autocast."""
    options: dict[str, Any] = {}
    if a.dtype != out.dtype:
        if a.is_cuda and torch.version.hip is None:
            options = {"out_dtype": out.dtype}
        else:
            a, b = a.to(out.dtype), b.to(out.dtype)
    if add:
        torch.baddbmm(out, a, b, out=out, **options)
    else:
        torch.bmm(a, b, out=out, **options)


def row_launch(kernel: Any, x: Tensor, rows: int, **constants: Any) -> None:
    """Of a kernel whose programs own whole rows of `x`, or of what is made of them."""
    block_i = 4
    launch(
        kernel,
        x.shape[0] * triton.cdiv(rows, block_i),
        x,
        x=x,
        stride=task_rows(x),
        rows=x.shape[1],
        D=x.shape[2],
        dtype=triton_dtype(x),
        BLOCK_I=block_i,
        BLOCK_D=power_of_two(x.shape[2], 16, 512 if x.element_size() <= 4 else 256),
        num_warps=4,
        **constants,
    )


def operands(q: Tensor, c: Tensor, metric: str, scales: Sequence[Tensor | None]) -> Operands:
    """Of q [T, Q, D] and c [T, N, D]; `scales`, of the cosine, are written."""
    (tasks, queries, features), ways, dtype = q.shape, c.shape[1], accumulator(q)
    variance = None
    if metric == "cosine":
        for x, scale in zip((q, c), scales, strict=True):
            row_launch(scales_kernel, x, x.shape[1], scale=scale)
        assert scales[1] is not None
        mean = q.new_empty(tasks, 1, features, dtype=dtype)
        multiply(scales[1].unsqueeze(1).to(c.dtype), c, mean)
        mean /= ways
    elif q.element_size() == 2:
        variance, mean = torch.var_mean(c, 1, correction=0)
    else:
        mean = c.mean(1)
    width, ones = triton.cdiv(ways, 16) * 16, triton.cdiv(features, 8) * 8
    made = []
    for x, scale, rows in zip((q, c), scales, (queries, width), strict=True):
        out, squares = q.new_empty(tasks, rows, ones + 8), q.new_empty(tasks, rows, dtype=dtype)
        shared = {"mean": mean, "variance": variance, "ONES": ones, "TF32": rounded(q)}
        row_launch(operands_kernel, x, rows, scale=scale, out=out, squares=squares, out_rows=rows, **shared)
        made += [out, squares]
    return Operands(made[0], made[2], made[1], made[3], mean, variance, None)


def rounded(like: Tensor) -> bool:
    """Whether torch rounds what it multiplies to TF32: then we do, to the nearest."""
    return like.dtype == torch.float32 and allows_tf32("matmul")


def near_share(like: Tensor, metric: str) -> float:
    """A pair whose square is below this share of the norms is near: in float32 it lost at most two bits; of halves, whose mean may be
    four deviations away, five of 24."""
    return 1 / 32 if like.element_size() == 2 and metric != "cosine" else 0.25


def memory_of(like: Tensor, whole: list[Part], width: int) -> Tensor:
    """For the products, or the weights, of a part."""
    largest = max((part.tasks * part.rows for part in whole), default=0)
    return like.new_empty(largest * width)


def of_part(memory: Tensor, part: Part, width: int) -> Tensor:
    return memory.view(-1)[: part.tasks * part.rows * width].view(part.tasks, part.rows, width)


def own_rows(x: Tensor, part: Part) -> Tensor:
    """Those of a part in x [T, Q, ...]."""
    return x[part.first_task : part.first_task + part.tasks, part.first_row : part.first_row + part.rows]


def multiply_part(made: Operands, part: Part, memory: Tensor) -> Tensor:
    """The products of a part, [tasks, rows, width]."""
    product = of_part(memory, part, made.y.shape[1])
    y = made.y[part.first_task : part.first_task + part.tasks]
    multiply(own_rows(made.x, part)[..., : made.ones], y[..., : made.ones].mT, product)
    return product


def arguments(
    part: Part, product: Tensor | None = None, made: Operands | None = None, share: float = 0.0
) -> dict[str, Any]:
    """Of a kernel that takes the distances of a part from its products, or finds them by differences."""
    return {
        "products": product,
        "x_square": made and made.x_square,
        "y_square": made and made.y_square,
        "WIDTH": 16 if product is None else product.shape[2],
        "NEAR": share,
        **place(part),
    }


def place(part: Part) -> dict[str, int]:
    return {"first_task": part.first_task, "first_row": part.first_row, "rows": part.rows}


def forward_parts(
    q: Tensor, c: Tensor, metric: str, scales: Sequence[Tensor | None], by_products: bool
) -> tuple[Sequence[Tensor | None], Iterable[tuple[Part, dict[str, Any]]]]:
    """What backward wants of it, and the parts of a forward pass with the arguments of each, one after the other: the next may
    overwrite products. All are kept where one chunk of at most CHUNK bytes holds them."""
    if not by_products:
        part = Part(0, q.shape[0], 0, q.shape[1])
        return NOTHING, [(part, arguments(part))]
    made = operands(q, c, metric, scales)
    whole = parts(q, c, made.y.shape[1])
    memory = memory_of(made.x_square, whole, made.y.shape[1])
    share = near_share(q, metric)
    given = ((part, arguments(part, multiply_part(made, part, memory), made, share)) for part in whole)
    if len(whole) == 1 and memory.nbytes <= CHUNK:
        made = made._replace(product=memory)
    return made, given

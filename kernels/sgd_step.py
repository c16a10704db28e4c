"""theta' = theta - alpha * g. Backward: dg = -alpha * d, dalpha = -d * g; where theta is not shared, dtheta is d itself."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._optimiser_launch import step_bwd, step_fwd
from ._optimiser_step import step_backward, step_forward

CONSTANTS = (0.0,)  # no weight decay


@triton.jit
def _forward(x, c):
    return (x[0] - x[2] * x[1],)


@triton.jit
def _backward(x, dy, c):
    return dy[0], -x[2] * dy[0], -dy[0] * x[1]


@triton.jit
def _sgd_step_fwd_kernel(
    ins, outs, constants, numbers, table, dtype: tl.constexpr, COUNT: tl.constexpr, CONSTANTS: tl.constexpr,
    TASKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    step_forward(_forward, ins, outs, constants, numbers, table, dtype, COUNT, CONSTANTS, TASKS, COLUMNS)


@triton.jit(do_not_specialize=("width",))
def _sgd_step_bwd_kernel(
    ins, douts, dins, partials, constants, numbers, table, width, dtype: tl.constexpr, COUNT: tl.constexpr,
    CONSTANTS: tl.constexpr, TASKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    step_backward(
        _backward, ins, douts, dins, partials, constants, numbers, table, width, dtype, True, COUNT, CONSTANTS, TASKS, COLUMNS
    )  # fmt: skip


def sgd_step_fwd(
    params: list[Tensor], grads: list[Tensor], lr: list[float | Tensor], needs: tuple[bool, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return step_fwd(_sgd_step_fwd_kernel, (params, grads), lr, CONSTANTS)


def sgd_step_bwd(
    cotangents: tuple[Tensor, ...],
    saved: tuple[Tensor, ...],
    params: list[Tensor],
    grads: list[Tensor],
    lr: list[float | Tensor],
    needs: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    return step_bwd(_sgd_step_bwd_kernel, cotangents, (params, grads), lr, CONSTANTS, needs)

"""g = g + decay theta, b' = momentum b + g, theta' = theta - alpha b', or theta - alpha (g + momentum b') with Nesterov. The backward reads
g, b and theta for the gradient to alpha alone."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._optimiser_launch import step_bwd, step_fwd
from ._optimiser_launch import takes_numbers as momentum_step_limit  # noqa: F401
from ._optimiser_step import decayed, step_backward, step_forward, through_decay


@triton.jit
def _forward(x, c):
    g = decayed(x, c)
    b = c[1] * x[2] + g
    return x[0] - x[3] * tl.where(c[2] != 0, g + c[1] * b, b), b


@triton.jit
def _backward(x, dy, c):
    g = decayed(x, c)
    b = c[1] * x[2] + g
    nesterov = c[2] != 0
    dstep = -x[3] * dy[0]
    db = dy[1] + tl.where(nesterov, c[1] * dstep, dstep)
    dg = tl.where(nesterov, db + dstep, db)
    return through_decay(dy[0], dg, c), dg, c[1] * db, -dy[0] * tl.where(nesterov, g + c[1] * b, b)


@triton.jit
def _momentum_step_fwd_kernel(
    ins, outs, constants, numbers, table, dtype: tl.constexpr, COUNT: tl.constexpr, CONSTANTS: tl.constexpr,
    TASKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    step_forward(_forward, ins, outs, constants, numbers, table, dtype, COUNT, CONSTANTS, TASKS, COLUMNS)


@triton.jit(do_not_specialize=("width",))
def _momentum_step_bwd_kernel(
    ins, douts, dins, partials, constants, numbers, table, width, dtype: tl.constexpr, COUNT: tl.constexpr,
    CONSTANTS: tl.constexpr, TASKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    step_backward(
        _backward, ins, douts, dins, partials, constants, numbers, table, width, dtype, True, COUNT, CONSTANTS, TASKS, COLUMNS
    )  # fmt: skip


def momentum_step_fwd(
    params: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    lr: list[float | Tensor],
    learned: list[Tensor],
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    needs: tuple[bool, ...],
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    lists, constants = (params, grads, velocities), (weight_decay, momentum, float(nesterov))
    return step_fwd(_momentum_step_fwd_kernel, lists, lr, constants)


def momentum_step_bwd(
    cotangents: tuple[Tensor, ...],
    saved: tuple[Tensor, ...],
    params: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    lr: list[float | Tensor],
    learned: list[Tensor],
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    needs: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    lists, constants = (params, grads, velocities), (weight_decay, momentum, float(nesterov))
    return step_bwd(_momentum_step_bwd_kernel, cotangents, lists, lr, constants, needs)

"""g = g + decay theta, m' = beta1 m + (1 - beta1) g, v' = beta2 v + (1 - beta2) g^2,
theta' = theta - alpha (m' / c1) / (sqrt(v' / c2) + eps), ci = 1 - betai^step; where v' is 0 its root has the derivative 0."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._distance import divide, root
from ._optimiser_launch import step_bwd, step_fwd
from ._optimiser_launch import takes_numbers as adam_step_limit  # noqa: F401
from ._optimiser_step import decayed, step_backward, step_forward, through_decay


@triton.jit
def _new_state(x, c):
    """m', v' and what they are made of: g with its decay."""
    g = decayed(x, c)
    return c[1] * x[2] + c[2] * g, c[3] * x[3] + c[4] * g * g, g


@triton.jit
def _forward(x, c):
    m, v, _ = _new_state(x, c)
    step = divide(m * c[6], root(v * c[7]) + c[5])
    return x[0] - x[4] * step, m, v


@triton.jit
def _backward(x, dy, c):
    m, v, g = _new_state(x, c)
    of_square = root(v * c[7])
    over = divide(of_square * 0 + 1, of_square + c[5])
    step = m * c[6] * over
    dstep = -x[4] * dy[0] * over  # to the numerator
    dm = dy[1] + dstep * c[6]
    below = tl.where(of_square == 0, 1.0, of_square)
    dv = dy[2] - tl.where(of_square == 0, 0.0, divide(dstep * step * c[7], 2 * below))
    dg = c[2] * dm + 2 * c[4] * g * dv
    return through_decay(dy[0], dg, c), dg, c[1] * dm, c[3] * dv, -dy[0] * step


@triton.jit
def _adam_step_fwd_kernel(
    ins, outs, constants, numbers, table, dtype: tl.constexpr, COUNT: tl.constexpr, CONSTANTS: tl.constexpr,
    TASKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    step_forward(_forward, ins, outs, constants, numbers, table, dtype, COUNT, CONSTANTS, TASKS, COLUMNS)


@triton.jit(do_not_specialize=("width",))
def _adam_step_bwd_kernel(
    ins, douts, dins, partials, constants, numbers, table, width, dtype: tl.constexpr, COUNT: tl.constexpr,
    CONSTANTS: tl.constexpr, TASKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    step_backward(
        _backward, ins, douts, dins, partials, constants, numbers, table, width, dtype, False, COUNT, CONSTANTS, TASKS, COLUMNS
    )  # fmt: skip


def _constants(step: float, beta1: float, beta2: float, weight_decay: float, eps: float) -> tuple[float, ...]:
    """As the formulas number them."""
    count = float(step)
    return weight_decay, beta1, 1 - beta1, beta2, 1 - beta2, eps, 1 / (1 - beta1**count), 1 / (1 - beta2**count)


def adam_step_fwd(
    params: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    lr: list[float | Tensor],
    step: float,
    learned: list[Tensor],
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    needs: tuple[bool, ...],
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    constants = _constants(step, beta1, beta2, weight_decay, eps)
    return step_fwd(_adam_step_fwd_kernel, (params, grads, means, squares), lr, constants)


def adam_step_bwd(
    cotangents: tuple[Tensor, ...],
    saved: tuple[Tensor, ...],
    params: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    lr: list[float | Tensor],
    step: float,
    learned: list[Tensor],
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    needs: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    constants = _constants(step, beta1, beta2, weight_decay, eps)
    return step_bwd(_adam_step_bwd_kernel, cotangents, (params, grads, means, squares), lr, constants, needs)

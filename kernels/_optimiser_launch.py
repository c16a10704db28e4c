"""The launches of the optimisers' steps; see _optimiser_step.py for their kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._launch import accumulator, launch
from ._tensor_list import SHARED, WANTED, dense_or, kind_of, make_plan, new_like, split_numbers

GROUP = {0: 44, 1: 35, 2: 28}  # tensors of a launch, by those of the state: kernel arguments are limited to 4 KiB
Lists = Sequence[Sequence[Any]]  # params, grads, the state; then perhaps rates


def takes_numbers(*args: Any) -> str | None:
    """The limit of the ops with a state, whose last argument that is a list has the numbers that are tensors."""
    learned = [x for x in args if isinstance(x, list)][-1]
    return "takes momentum, betas and weight_decay as numbers, got a tensor" if learned else None


def step_fwd(
    kernel: Any, lists: Lists, lr: list[float | Tensor], constants: Sequence[float]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    grads = lists[1]
    outs = [[torch.empty(g.shape, dtype=g.dtype, device=g.device) for g in grads] for _ in lists[1:]]
    operands = [*lists, lr * len(grads) if len(lr) == 1 else lr]
    group = GROUP[len(lists) - 2]
    for i in range(0, len(grads), group):
        some = [x[i : i + group] for x in operands]
        gs = [g.contiguous() for g in some[1]]
        plan = make_plan(gs, [kind_of(x) for x in zip(*some, strict=True)])
        launch(
            kernel,
            sum(plan.programs),
            gs[0],
            tuple(dense_or(x, gs) for x in some),
            tuple(tuple(out[i : i + group]) for out in outs),
            split_numbers(constants, gs[0].dtype),
            split_numbers(some[-1], gs[0].dtype),
            plan.table,
            CONSTANTS=len(constants),
            **plan.options,
        )
    return tuple(x for out in outs for x in out), ()


def step_bwd(
    kernel: Any,
    cotangents: Sequence[Tensor],
    lists: Lists,
    lr: list[float | Tensor],
    constants: Sequence[float],
    needs: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    """The gradients that are needed, of params, grads, the state, rates."""
    n, last, one_rate = len(lists[0]), len(lists), len(lr) == 1
    operands = [*lists, lr * n if one_rate else lr]
    wanted = [needs[k * n : (k + 1) * n] for k in range(last)]
    wanted.append(needs[last * n : last * n + len(lr)] * (n if one_rate else 1))
    douts = [cotangents[k * n : (k + 1) * n] for k in range(last - 1)]
    found: list[list[Tensor | None]] = [[] for _ in operands]
    group = GROUP[last - 2]
    for i in range(0, n, group):
        parts: Any = ([x[i : i + group] for x in all_of] for all_of in (douts, operands, wanted))
        for all_of, of_group in zip(found, _backward_group(kernel, constants, *parts), strict=True):
            all_of += of_group
    present = [[x for x in some if x is not None] for some in found]
    if one_rate and len(present[-1]) > 1:
        present[-1] = [torch.stack(present[-1]).sum(0)]
    present[-1] = [r.to(lists[1][0].dtype) for r in present[-1]]
    return tuple(x for some in present for x in some)


def _backward_group(
    kernel: Any, constants: Sequence[float], douts: Lists, operands: Lists, wanted: Sequence[Sequence[bool]]
) -> list[list[Tensor | None]]:
    """Of each operand the gradients that are needed, from one launch."""
    gs = [g.contiguous() for g in operands[1]]
    kinds = [kind_of(x, needs) for x, needs in zip(zip(*operands, strict=True), zip(*wanted, strict=True), strict=True)]
    passes = [len(operands) == 3 and not k & SHARED.value for k in kinds]  # dtheta is the cotangent itself
    kinds = [k & ~WANTED.value if through else k for k, through in zip(kinds, passes, strict=True)]
    plan = make_plan(gs, kinds)
    numbers = [not (isinstance(r, Tensor) and r.ndim) for r in operands[-1]]
    made = [
        [new_like(x, g) if k & WANTED.value << i else None for x, g, k in zip(some, gs, kinds, strict=True)]
        for i, some in enumerate(operands[:-1])
    ]
    of_rates = zip(operands[-1], gs, wanted[-1], numbers, strict=True)
    made.append([new_like(r, g) if need and not number else None for r, g, need, number in of_rates])
    width, partials = max(plan.programs), None
    if any(need and number for need, number in zip(wanted[-1], numbers, strict=True)):
        partials = torch.zeros(len(gs), width, dtype=accumulator(gs[0]), device=gs[0].device)
    launch(
        kernel,
        sum(plan.programs) if max(kinds) >= WANTED.value else 0,
        gs[0],
        tuple(dense_or(x, gs) for x in operands),
        tuple(dense_or(d, gs) for d in douts),
        tuple(dense_or(x, gs) for x in made),
        partials,
        split_numbers(constants, gs[0].dtype),
        split_numbers(operands[-1], gs[0].dtype),
        plan.table,
        width,
        CONSTANTS=len(constants),
        **plan.options,
    )
    for i, (d, p) in enumerate(zip(douts[0], operands[0], strict=True)):
        if wanted[0][i] and passes[i]:
            made[0][i] = d if d.shape == p.shape else d.reshape(p.shape)
        if partials is not None and wanted[-1][i] and numbers[i]:
            made[-1][i] = partials[i].sum()
    return made

"""What the engine's Functions keep for their backward, and the gradients with a graph of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._autograd import gradients, scatter
from ._chain import Noise, noise_of


def remember(ctx: Any, items: Sequence[Any], others: Sequence[Tensor]) -> None:
    ctx.numbers = [None if isinstance(x, Tensor) else x for x in items]
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in items), *others)


def remembered(ctx: Any) -> tuple[list[Any], list[Tensor]]:
    """The items, and the others."""
    kept = list(ctx.saved_tensors)  # once: a checkpoint recomputes at every access
    count = len(ctx.numbers)
    return [x if n is None else n for x, n in zip(kept[:count], ctx.numbers, strict=True)], kept[count:]


def drew(before: Noise, like: Tensor) -> bool:
    """Whether random numbers have been drawn since."""
    (cpu, _, cuda), (cpu_before, _, cuda_before) = noise_of(like), before
    same = torch.equal(cpu, cpu_before)
    if cuda is not None and cuda_before is not None:
        same = same and torch.equal(cuda, cuda_before)
    return not same


def refuse_changed(problem: Any) -> None:
    """RuntimeError where what is computed again on the way back would be computed by another network than on the way there."""
    seen = problem.plan.seen
    if seen is not None and not seen.same_run():
        raise RuntimeError(
            f"{problem.learner}: the model must stay as it is until the way back, got one that was changed after the forward pass"
        )


def differentiable(
    ctx: Any, unrolled: Callable[..., Any], items: Sequence[Any], cotangents: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradients with a graph of their own."""
    problem, needs = ctx.problem, ctx.needs_input_grad[1:]
    if ctx.drew:
        raise RuntimeError(
            f"{problem.learner}: a derivative of the meta-gradient needs a model that draws no random numbers, got one that does"
        )
    fresh = [x.view_as(x) if need else x for x, need in zip(items, needs, strict=True)]  # none depends on another
    wanted = [x for x, need in zip(fresh, needs, strict=True) if need]
    outputs = unrolled(problem, problem.flat(fresh))
    found = gradients(outputs, wanted, cotangents, create_graph=True)
    return scatter(found, needs)

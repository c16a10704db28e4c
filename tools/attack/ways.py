"""Ways to a value or a derivative, as user code goes; and what plain autograd answers for them.

`Way.take(fn, ...)` and `Way.truth(fn, ...)` give the same list of lists of tensors, the first by torch.func, torch.compile and
the like, the second by nested torch.autograd.grad alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Fn = Callable[..., list[Tensor]]
Results = list[Sequence[Tensor]]


@dataclass
class Setting:
    """Which inputs are differentiated, how often, and the seed of the cotangents."""

    needs: list[bool]
    order: int
    seed: int

    def number(self, like: Tensor, place: int) -> Tensor:
        """Cotangents and tangents, that every dtype can hold; float64."""
        drawn = np.random.default_rng(self.seed + place).standard_normal(like.shape, dtype=np.float32)
        return torch.as_tensor(drawn).bfloat16().double()  # of NumPy: torch.vmap refuses torch's own

    def contracted(self, tensors: Sequence[Tensor], level: int) -> Tensor:
        return sum((x.double() * self.number(x, 100 * level + i)).sum() for i, x in enumerate(tensors)) + torch.zeros(
            ()
        )

    def wanted(self, tensors: Sequence[Any]) -> list[Any]:
        return [x for x, need in zip(tensors, self.needs, strict=True) if need]

    def insert(self, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
        """`tensors`, those that are needed replaced."""
        remaining = iter(values)
        return [next(remaining) if need else x for x, need in zip(tensors, self.needs, strict=True)]


def nested(fn: Fn, tensors: Sequence[Tensor], s: Setting) -> Results:
    """The outputs, the gradients of a random contraction of them, and so on."""
    found: Results = [fn(*tensors)]
    for level in range(s.order):
        wrt, total = s.wanted(tensors), s.contracted(found[-1], level)
        if not total.requires_grad:
            found.append([torch.zeros_like(x) for x in wrt])
            continue
        options = {"create_graph": level + 1 < s.order, "allow_unused": True, "materialize_grads": True}
        found.append(torch.autograd.grad(total, wrt, **options))
    return found


def functional(fn: Fn, tensors: Sequence[Tensor], s: Setting) -> Results:
    """torch.func.grad of torch.func.grad ..."""

    def level(k: int, *values: Tensor) -> Sequence[Tensor]:
        if k == 0:
            return fn(*s.insert(tensors, values))
        places = tuple(range(len(values)))
        return torch.func.grad(lambda *v: s.contracted(level(k - 1, *v), k - 1), places)(*values)

    return [level(s.order, *s.wanted(tensors))]


def tangents(tensors: Sequence[Tensor], s: Setting) -> tuple[Tensor, ...]:
    return tuple(s.number(x, 7000 + i).to(x.dtype) for i, x in enumerate(s.wanted(tensors)))


def forward_mode(fn: Fn, tensors: Sequence[Tensor], s: Setting) -> Results:
    values = tuple(s.wanted(tensors))
    return list(torch.func.jvp(lambda *v: tuple(fn(*s.insert(tensors, v))), values, tangents(tensors, s)))


def linearized(fn: Fn, tensors: Sequence[Tensor], s: Setting) -> Results:
    value, push = torch.func.linearize(lambda *v: tuple(fn(*s.insert(tensors, v))), *s.wanted(tensors))
    return [value, push(*tangents(tensors, s))]


def pushed(fn: Fn, tensors: Sequence[Tensor], s: Setting) -> Results:
    """The jvp by two backward passes: that of u . J' along the tangents, with respect to u."""
    outs, wrt = fn(*tensors), s.wanted(tensors)
    moving = [y for y in outs if y.requires_grad]
    probes = [torch.zeros_like(y).requires_grad_() for y in moving]
    options = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
    pulled = torch.autograd.grad(moving, wrt, probes, **options) if moving else [x * 0 for x in wrt]
    along = sum((g * t).sum() for g, t in zip(pulled, tangents(tensors, s), strict=True))
    answers = iter(torch.autograd.grad(along, probes, **options) if moving and along.requires_grad else probes)
    return [outs, [next(answers) if y.requires_grad else torch.zeros_like(y) for y in outs]]


def scales(s: Setting, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Two versions of the inputs that are differentiated."""
    return [[(x.detach() * c) for x in s.wanted(tensors)] for c in (1.0, 0.75)]


def mapped(fn: Fn, tensors: Sequence[Tensor], s: Setting) -> Results:
    """torch.vmap over versions of the inputs, of the values or of their gradient."""
    fixed = [x.detach() for x in tensors]
    inner = Setting(s.needs, min(s.order, 1), s.seed)
    stacked = [torch.stack(pair, -1) for pair in zip(*scales(s, tensors), strict=True)]
    return [torch.vmap(lambda *v: tuple(functional(fn, s.insert(fixed, v), inner)[0]), -1)(*stacked)]


def one_by_one(fn: Fn, tensors: Sequence[Tensor], s: Setting) -> Results:
    fixed, inner = [x.detach() for x in tensors], Setting(s.needs, min(s.order, 1), s.seed)
    each = [nested(fn, s.insert(fixed, [x.requires_grad_() for x in v]), inner)[-1] for v in scales(s, tensors)]
    return [[torch.stack(pair) for pair in zip(*each, strict=True)]]


def _cotangents(outs: Sequence[Tensor], s: Setting, k: int) -> list[Tensor]:
    return [s.number(y, 9000 + i + 50 * k).to(y.dtype) for i, y in enumerate(outs) if y.requires_grad]


def batched(fn: Fn, tensors: Sequence[Tensor], s: Setting) -> Results:
    """Several cotangents in one backward pass."""
    outs, wrt = fn(*tensors), s.wanted(tensors)
    moving = [y for y in outs if y.requires_grad]
    stacks = [torch.stack(pair) for pair in zip(*(_cotangents(outs, s, k) for k in (0, 1)), strict=True)]
    options = {"allow_unused": True, "is_grads_batched": True}
    found = torch.autograd.grad(moving, wrt, stacks, **options) if moving else [None] * len(wrt)
    return [[torch.stack([x * 0] * 2) if g is None else g for g, x in zip(found, wrt, strict=True)]]


def unbatched(fn: Fn, tensors: Sequence[Tensor], s: Setting) -> Results:
    outs, wrt = fn(*tensors), s.wanted(tensors)
    moving = [y for y in outs if y.requires_grad]
    options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    each = [
        torch.autograd.grad(moving, wrt, _cotangents(outs, s, k), **options) if moving else [x * 0 for x in wrt]
        for k in (0, 1)
    ]
    return [[torch.stack(pair) for pair in zip(*each, strict=True)]]


def compiled(fn: Fn, tensors: Sequence[Tensor], s: Setting) -> Results:
    torch.compiler.reset()
    return nested(torch.compile(fn, backend="aot_eager", fullgraph=True), tensors, s)


def traced(fn: Fn, tensors: Sequence[Tensor], s: Setting) -> Results:
    """Traced on other values."""
    graph = torch.jit.trace(lambda *v: tuple(fn(*v)), tuple(x.detach() * 0.5 for x in tensors), check_trace=False)
    return nested(lambda *v: list(graph(*v)), tensors, s)


def checkpointed(fn: Fn, tensors: Sequence[Tensor], s: Setting) -> Results:
    return nested(lambda *v: torch.utils.checkpoint.checkpoint(fn, *v, use_reentrant=False), tensors, s)


def within(
    context: Callable[[], contextlib.AbstractContextManager],
) -> Callable[[Fn, Sequence[Tensor], Setting], Results]:
    def take(fn: Fn, tensors: Sequence[Tensor], s: Setting) -> Results:
        with context():
            return nested(fn, tensors, s)

    return take


def counting() -> contextlib.AbstractContextManager:
    from torch.utils.flop_counter import FlopCounterMode

    return FlopCounterMode(display=False)


@dataclass
class Way:
    take: Callable[[Fn, Sequence[Tensor], Setting], Results]
    truth: Callable[[Fn, Sequence[Tensor], Setting], Results]
    weight: float
    max_order: int


def _last(fn: Fn, tensors: Sequence[Tensor], s: Setting) -> Results:
    return nested(fn, tensors, s)[-1:]


WAYS = {
    "eager": Way(nested, nested, 60, 3),
    "grad": Way(functional, _last, 10, 3),
    "vmap": Way(mapped, one_by_one, 10, 1),
    "jvp": Way(forward_mode, pushed, 5, 1),
    "linearize": Way(linearized, pushed, 1, 1),
    "batched": Way(batched, unbatched, 3, 1),
    "compile": Way(compiled, nested, 0.7, 1),
    "trace": Way(traced, nested, 1, 1),
    "checkpoint": Way(checkpointed, nested, 1.5, 1),
    "flops": Way(within(counting), nested, 1.5, 2),
    "inference": Way(within(torch.inference_mode), nested, 2, 0),
    "no_grad": Way(within(torch.no_grad), nested, 1, 0),
}

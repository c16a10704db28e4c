"""The one tolerance: a small multiple of the formula's own error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .problem import Finding

TIMES = 64  # an op may err so many times as much as its formula does in the op's own precision
ULPS = 32  # of the largest value, whatever the formula's own error: other orders of the same sums


def working(dtype: torch.dtype) -> torch.dtype:
    """What an op computes in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def moved(x: Tensor, dtype: torch.dtype, turn: int) -> Tensor:
    """x, off by one or two roundings of `dtype`; equal numbers stay equal, zeros stay zero."""
    by = torch.sin(x * 12345.678 + turn).nan_to_num()
    return x * (1 + torch.finfo(working(dtype)).eps * (by + by.sign()))


class Rounding(TorchDispatchMode):
    """Every result of a computation, backward ones too, is `moved`."""

    def __init__(self, dtype: torch.dtype, turn: int) -> None:
        super().__init__()
        self.dtype, self.turn = dtype, turn

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        aliases = any(r.alias_info is not None for r in func._schema.returns)  # a view, or written in place
        if aliases or not isinstance(out, Tensor) or out.dtype != torch.float64:
            return out
        if func is torch.ops.aten._log_softmax_backward_data.default:  # g - p sum(g), where p may be nearly 1
            out = out + (moved(args[0], self.dtype, self.turn) - args[0])
        return moved(out, self.dtype, self.turn)


def tolerance(
    want: Tensor, own: Sequence[Tensor], dtype: torch.dtype, terms: float = 0.0, beside: float = 0.0
) -> Tensor:
    """The error allowed to each element.

    `own`: what else the formula gives: in float32, and in float64 with every step moved by a rounding of the working precision.
    Its largest deviation from the truth is the formula's own error, conditioning included; that of float32 shrinks with the
    rounding for float64. To float16 and bfloat16 the rounding of results is added, of what tasks add up included, which may be
    as large as the results `beside`. `terms`: the size of what cancels.
    """
    if not want.numel():
        return want
    eps, finite = torch.finfo(working(dtype)).eps, want.isfinite()
    largest = torch.where(finite, want.abs(), 0).amax().clamp(min=terms)
    errors = [torch.where(finite & x.isfinite(), (x - want).abs(), 0).amax() for x in own]
    errors = [e * (eps / torch.finfo(torch.float32).eps if i == 0 else 1) for i, e in enumerate(errors)]
    low = 0 if dtype == working(dtype) else 4 * torch.finfo(dtype).eps * largest.clamp(min=beside)
    return TIMES * torch.stack([largest * 0, *errors]).amax() + ULPS * eps * largest + low + torch.finfo(dtype).tiny


def scale(inputs: Sequence[Tensor]) -> float:
    """Of the terms that cancel where the truth is 0, or as small as a rounding of theirs: inputs, or what is divided by them."""
    sizes = [x[x.isfinite() & (x != 0)].abs() for x in inputs]
    return min(max([1.0, *(max(float(s.max()), 1 / float(s.max())) for s in sizes if s.numel())]), 1e6)


def compare(
    what: str,
    got: Tensor,
    want: Tensor,
    others: Callable[[], Sequence[Tensor]],
    inputs: Sequence[Tensor],
    differences: bool,
    beside: float = 0.0,
) -> None:
    """A finding where `got` is not the truth `want`, float64. `others` gives `own`; `beside`: see `tolerance`."""
    if list(got.shape) != list(want.shape):
        raise Finding(f"{what}: another shape", f"{list(got.shape)} for {list(want.shape)}")
    dtype, found = got.dtype, got.detach().as_subclass(Tensor).resolve_neg().to(torch.float64)
    terms = scale(inputs)
    if not differences and (want.abs() > ULPS * torch.finfo(working(dtype)).eps * terms).any():
        terms = 0.0
    if ((found == want) | ((found - want).abs() <= tolerance(want, [], dtype, terms))).all():
        return
    own = others()
    narrow = want if dtype == torch.float64 else own[0].to(dtype).to(torch.float64)  # where beyond its range
    beyond = not differences and (
        _squares_overflow([*inputs, want], working(dtype)) or bool((want.abs() > torch.finfo(dtype).max).any())
    )
    _compare_special(what, found, want, narrow, beyond)
    allowed = tolerance(want, own, dtype, terms, beside)
    there = want.isfinite() & narrow.isfinite() & found.isfinite()
    wrong = there & ~((found - want).abs() <= allowed)
    if wrong.any():
        at = torch.where(wrong, (found - want).abs() / allowed.clamp(min=1e-300), -1).flatten().argmax()
        limit, error = allowed.expand(want.shape).flatten()[at], (found - want).flatten()[at]
        raise Finding(
            f"{what} differs",
            f"{found.flatten()[at]:.9g} for {want.flatten()[at]:.9g}, by {error:.2g}, {limit:.2g} allowed",
        )


def _squares_overflow(tensors: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether products on the way may overflow, or be 0 * NaN, in one order and not in another."""
    root = torch.finfo(dtype).max ** 0.5 / 1e3
    return any(not bool((x.abs() <= root).all()) for x in tensors)


def _compare_special(what: str, found: Tensor, want: Tensor, narrow: Tensor, beyond: bool) -> None:
    """NaN and infinities are where the formula has them, in float64 and in the op's precision."""
    cases = {
        "NaN vanishes": want.isnan() & narrow.isnan() & ~found.isnan() & ~((found.abs() > 1e30) & beyond),
        "not finite": want.isfinite() & narrow.isfinite() & ~found.isfinite() & (not beyond),
        "an infinity vanishes": want.isinf() & (narrow == want) & (found != want) & ~found.isnan(),
    }
    for kind, wrong in cases.items():
        if wrong.any():
            raise Finding(
                f"{what}: {kind}", f"{found[wrong][0]:.6g} for {want[wrong][0]:.6g}, {int(wrong.sum())} elements"
            )

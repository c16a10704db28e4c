"""The one tolerance: a small multiple of the formula's own error."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .subject import Finding

TIMES = 64  # an op may err so many times as much as its formula does in the op's own precision
ULPS = 32  # of the largest value, whatever the formula's own error: other orders of the same sums


def moved(x, dtype, turn):
    """x, off by one or two roundings of `dtype`; equal numbers stay equal, zeros stay zero."""
    by = torch.sin(x * 12345.678 + turn).nan_to_num()
    return x * (1 + torch.finfo(dtype).eps * (by + by.sign()))


class Rounding(TorchDispatchMode):
    """Every result of a computation, backward ones too, is `moved`."""

    def __init__(self, dtype, turn):
        super().__init__()
        self.dtype, self.turn = dtype, turn

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        aliases = any(r.alias_info is not None for r in func._schema.returns)  # a view, or written in place
        if aliases or not isinstance(out, Tensor) or out.dtype != torch.float64:
            return out
        if func is torch.ops.aten._log_softmax_backward_data.default:  # g - p sum(g), where p may be nearly 1
            out = out + (moved(args[0], self.dtype, self.turn) - args[0])
        return moved(out, self.dtype, self.turn)


def tolerance(want, own, dtype, terms=0.0):
    """The error allowed to each element.

    `own`: what else the formula gives: in float32, and in float64 with every step moved by a rounding of `dtype`. Its largest
    deviation from the truth is the formula's own error, conditioning included; that of float32 shrinks with the rounding for
    float64. `terms`: the size of what cancels.
    """
    if not want.numel():
        return want
    eps, finite = torch.finfo(dtype).eps, want.isfinite()
    largest = torch.where(finite, want.abs(), 0).amax().clamp(min=terms)
    errors = [torch.where(finite & x.isfinite(), (x - want).abs(), 0).amax() for x in own]
    errors = [e * (eps / torch.finfo(torch.float32).eps if i == 0 else 1) for i, e in enumerate(errors)]
    return TIMES * torch.stack([largest * 0, *errors]).amax() + ULPS * eps * largest + torch.finfo(dtype).tiny


def scale(inputs):
    """Of the terms that cancel where the truth is 0, or as small as a rounding of theirs: inputs, or what is divided by them."""
    sizes = [x[x.isfinite() & (x != 0)].abs() for x in inputs]
    return min(max([1.0, *(max(float(s.max()), 1 / float(s.max())) for s in sizes if s.numel())]), 1e6)


def compare(what, got, want, others, inputs, differences):
    """A finding where `got` is not the truth `want`, float64. `others` gives `own`."""
    if list(got.shape) != list(want.shape):
        raise Finding(f"{what}: another shape", f"{list(got.shape)} for {list(want.shape)}")
    dtype, found = got.dtype, got.detach().as_subclass(Tensor).resolve_neg().to(torch.float64)
    terms = scale(inputs)
    if not differences and (want.abs() > ULPS * torch.finfo(dtype).eps * terms).any():
        terms = 0.0
    if ((found == want) | ((found - want).abs() <= tolerance(want, [], dtype, terms))).all():
        return
    own = others()
    narrow = want if dtype == torch.float64 else own[0]  # where beyond its range
    limit = torch.finfo(dtype).max
    overflows = any(
        not bool((x.abs() <= limit**0.5 / 1e3).all()) for x in (*inputs, want)
    )  # in one order and not in another
    _compare_special(what, found, want, narrow, not differences and overflows)
    allowed = tolerance(want, own, dtype, terms)
    wrong = want.isfinite() & narrow.isfinite() & found.isfinite() & ~((found - want).abs() <= allowed)
    if wrong.any():
        at = torch.where(wrong, (found - want).abs() / allowed.clamp(min=1e-300), -1).flatten().argmax()
        ours, right, most = (float(x.flatten()[at]) for x in (found, want, allowed.expand(want.shape)))
        raise Finding(f"{what} differs", f"{ours:.9g} for {right:.9g}, by {ours - right:.2g}, {most:.2g} allowed")


def _compare_special(what, found, want, narrow, beyond):
    """NaN and infinities are where the formula has them, in float64 and in the op's precision."""
    cases = {
        "NaN vanishes": want.isnan() & narrow.isnan() & ~found.isnan() & ~((found.abs() > 1e30) & beyond),
        "not finite": want.isfinite() & narrow.isfinite() & ~found.isfinite() & (not beyond),
        "an infinity vanishes": want.isinf() & (narrow == want) & (found != want) & ~found.isnan(),
    }
    for kind, wrong in cases.items():
        if wrong.any():
            values = f"{found[wrong][0]:.6g} for {want[wrong][0]:.6g}, {int(wrong.sum())} elements"
            raise Finding(f"{what}: {kind}", values)

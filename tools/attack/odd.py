"""Odd values, and odd views of tensors: what user code hands over."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .draw import Draw

TAME = {"offset": 3, "ties": 2, "outliers": 2, "coincident": 2, "tiny": 2, "denormal": 1, "zeros": 1}
EQUAL = ("expanded", "overlap")  # views with equal numbers
WILD = {"nan": 2, "inf": 1, "overflow": 2}
VIEWS = (
    "strided",
    "transposed",
    "offset",
    "expanded",
    "neg",
    "flipped",
    "overlap",
    "computed",
    "parameter",
    "subclass",
)


class Subclass(Tensor):
    """A tensor of another type."""


def values(draw: Draw, x: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """float64 values of one kind, that `dtype` can hold."""
    if not x.numel():
        return x
    spots = torch.rand(x.shape, generator=draw.generator("spots")) < 1 / min(x.numel(), 8)
    limits = torch.finfo(dtype)
    if kind == "offset":
        return x + 1e3
    if kind == "ties":
        return x.round()
    if kind == "coincident":
        return x.reshape(-1, x.shape[-1])[:1].repeat(x.numel() // x.shape[-1], 1).reshape(x.shape) if x.ndim else x
    if kind == "tiny":
        return x * 1e-6
    if kind == "denormal":
        return x * limits.tiny / 8
    if kind == "zeros":
        return x * 0
    spot = {"outliers": 1e4 * x, "nan": torch.nan, "inf": torch.inf, "overflow": x * limits.max**0.5 * 4}[kind]
    return torch.where(spots, torch.as_tensor(spot, dtype=x.dtype), x)


def view(draw: Draw, x: Tensor, kind: str) -> Tensor:
    """A tensor with the values of x, or some of them repeated, that lies in memory as `kind` says."""
    if kind == "strided":
        wide = (
            torch.full((*x.shape, 3), torch.nan, dtype=x.dtype)
            if x.is_floating_point()
            else x[..., None].repeat(*[1] * x.ndim, 3)
        )
        wide[..., 1] = x
        return wide[..., 1]
    if kind == "transposed" and x.ndim >= 2:
        order = list(range(x.ndim))
        draw.random("transposed").shuffle(order)
        back = [order.index(i) for i in range(x.ndim)]
        return x.permute(order).contiguous().permute(back)
    if kind == "offset":
        return torch.cat([x.new_ones(1), x.flatten()])[1:].view(x.shape)
    if kind == "expanded" and x.ndim and x.numel():
        axis = draw.pick("axis", range(x.ndim))
        return x.narrow(axis, 0, 1).expand(x.shape)
    if kind == "overlap" and x.ndim >= 2 and x.numel():
        flat = x.flatten()[: sum(n - 1 for n in x.shape) + 1].clone()
        return flat.as_strided(x.shape, [1] * x.ndim)
    if kind == "neg" and x.dtype in (torch.float32, torch.float64):
        return torch.complex(torch.zeros_like(x), -x).conj().imag
    if kind == "flipped" and x.ndim:
        return x.flip(-1).contiguous().flip(-1)
    return x


def labels(draw: Draw, y: Tensor) -> Tensor:
    """Odd views of labels that keep their values."""
    return (
        view(draw, y, draw.pick("label view", ("strided", "transposed", "offset")))
        if draw.odd("labelviews", 0.3)
        else y
    )


def as_input(draw: Draw, x: Tensor, kind: str, needs: bool) -> Tensor:
    """`view`, as a leaf, a parameter, a subclass, or the result of a computation."""
    if kind == "computed" and needs:
        return x.clone().requires_grad_() * 1
    x = view(draw, x, kind)
    if kind == "parameter":
        return nn.Parameter(x.clone(), requires_grad=needs)
    if kind == "subclass":
        x = x.as_subclass(Subclass)
    if kind in ("strided", "neg", "transposed") and needs and draw.odd("nonleaf", 0.3):
        return view(draw, x.clone().requires_grad_(), kind)
    return x.detach().requires_grad_(needs)

"""Ops as opaque nodes of a traced graph: torch.compile, torch.export, make_fx, FakeTensor.

Every op shares one pair of dispatcher ops, `fastmeta::forward` and `fastmeta::backward`; the backend is chosen when they
run. Under torch.func inside a trace the reference is traced instead. A second derivative inside a trace raises.
"""

from __future__ import annotations

import ast
import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _dispatch
from ._autograd import Flat, _transforms_active, scatter

_library = torch.library.Library("fastmeta", "DEF")
_library.define("forward(str op, str spec, Tensor?[] inputs) -> Tensor[]")
_library.define("backward(str op, str spec, Tensor[] cotangents, Tensor?[] inputs, bool[] needs) -> Tensor[]")

_parse = functools.cache(ast.literal_eval)


def traced(name: str, flat: Flat, layout: Any, static: Any, cores: Any) -> tuple[Tensor, ...]:
    """`call` for tensors that are being traced."""
    like = next(x for x in flat if isinstance(x, Tensor) and x.is_floating_point())
    autocast = torch.is_autocast_enabled(like.device.type)
    dtype = torch.float32 if autocast and like.dtype in _dispatch.LOW_PRECISION else like.dtype
    inputs = [
        (x.to(dtype) if x.is_floating_point() else x).view_as(x)  # a tensor given twice must not be the same object
        if isinstance(x, Tensor)
        else (None if x is None else torch.full((), x, dtype=dtype, device=like.device))
        for x in flat
    ]
    spec = repr((layout, static, cores))
    if _transforms_active():
        with torch.autocast(like.device.type, enabled=False):
            return _reference(name, layout, static, inputs)
    return tuple(torch.ops.fastmeta.forward(name, spec, inputs))


def _differentiable(name: str, spec: str, inputs: list[Tensor | None]) -> list[Tensor]:
    return list(Traced.apply(name, spec, *inputs))


class Traced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, spec: str, *inputs: Tensor | None) -> Any:
        ctx.save_for_backward(*inputs)
        ctx.op = name, spec
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(torch.ops.fastmeta.forward(name, spec, list(inputs)))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        name, spec = ctx.op
        needs = list(ctx.needs_input_grad[2:])
        grads = torch.ops.fastmeta.backward(name, spec, list(cotangents), list(ctx.saved_tensors), needs)
        return None, None, *scatter(grads, needs)


def _reference(name: str, layout: Any, static: Any, inputs: Any) -> tuple[Tensor, ...]:
    return _dispatch.widened(_dispatch.flat_reference(name, layout, static), inputs)


def _forward(name: str, spec: str, inputs: list[Tensor | None]) -> list[Tensor]:
    layout, static, cores = _parse(spec)
    device = next(x for x in inputs if x is not None).device
    with torch.autocast(device.type, enabled=False):
        return _own(_dispatch.run(name, tuple(inputs), layout, static, cores, device), inputs)


def _backward(
    name: str, spec: str, cotangents: list[Tensor], inputs: list[Tensor | None], needs: list[bool]
) -> list[Tensor]:
    with torch.enable_grad(), _at_top_level():
        leaves = [
            x if x is None or not x.is_floating_point() else x.detach().requires_grad_(need)
            for x, need in zip(inputs, needs, strict=True)
        ]
        outputs = _forward(name, spec, leaves)
        wanted = [x for x, need in zip(leaves, needs, strict=True) if need and x is not None]
        grads = torch.autograd.grad(outputs, wanted, cotangents, materialize_grads=True)
    return _own([g.contiguous() for g in grads], [*cotangents, *inputs])


def _at_top_level() -> contextlib.AbstractContextManager[None]:
    """A node runs below autograd, under a dispatch mode below torch.func too; a reference's derivatives need both."""
    keys = torch._C.DispatchKey
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in (
        keys.AutogradOther, keys.AutogradFunctionality, keys.ADInplaceOrView, keys.PythonTLSSnapshot,
        keys.FuncTorchDynamicLayerFrontMode, keys.FuncTorchDynamicLayerBackMode,
        keys.FuncTorchGradWrapper, keys.FuncTorchBatched, keys.FuncTorchVmapMode,
    ):  # fmt: skip
        excluded = excluded.remove(key)
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded)


def _own(outputs: Sequence[Tensor], inputs: Sequence[Tensor | None]) -> list[Tensor]:
    """A copy of every output that shares memory with an input or another output: a compiler writes over inputs it needs no more."""
    taken = {x.untyped_storage().data_ptr() for x in inputs if x is not None}
    found = []
    for y in outputs:
        place = y.untyped_storage().data_ptr()
        found.append(y.clone() if place in taken else y)
        taken.add(place)
    return found


def _no_second_order(
    name: str, spec: str, cotangents: list[Tensor], inputs: list[Tensor | None], needs: list[bool]
) -> list[Tensor]:
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*cotangents, *inputs)):
        raise RuntimeError(f"{name}: a second derivative must be taken outside torch.compile, got one inside")
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.fastmeta.backward(name, spec, cotangents, inputs, needs)


def _fake_forward(name: str, spec: str, inputs: list[Tensor | None]) -> list[Tensor]:
    layout, static, _ = _parse(spec)
    outputs = _reference(name, layout, static, inputs)
    return [torch.empty(y.shape, dtype=y.dtype, device=y.device) for y in outputs]


def _fake_backward(
    name: str, spec: str, cotangents: list[Tensor], inputs: list[Tensor | None], needs: list[bool]
) -> list[Tensor]:
    wanted = (x for x, need in zip(inputs, needs, strict=True) if need and x is not None)
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in wanted]


_library.impl("forward", _forward, "CompositeExplicitAutograd")
_library.impl("forward", _differentiable, "Autograd")
_library.impl("backward", _backward, "CompositeExplicitAutograd")
_library.impl("backward", _no_second_order, "Autograd")
torch.library.register_fake("fastmeta::forward", _fake_forward, lib=_library)
torch.library.register_fake("fastmeta::backward", _fake_backward, lib=_library)

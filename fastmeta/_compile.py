"""Ops as opaque nodes of a traced graph: torch.compile, torch.export, make_fx, FakeTensor.

Every op shares one pair of dispatcher ops, `fastmeta::forward` and `fastmeta::backward`; the backend is chosen when they
run. Under torch.func and forward-mode AD inside a trace the reference is traced instead, and of a second derivative what the
reference makes of it.

A fused loss finds its gradients in forward. On a CPU it has the pair `fastmeta::forward_keeping` and `fastmeta::backward_kept`, which hand
them on in one flat tensor, so that its kernel runs once.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _dispatch
from ._autograd import Flat, Op, gradients, is_autocast, scatter, without_autocast
from ._memory import all_in_memory
from ._torch import at_top_level, below_autograd, is_batched_cotangent, is_functional, transforms_active

_library = torch.library.Library("fastmeta", "DEF")
_library.define("forward(str op, str spec, Tensor?[] inputs) -> Tensor[]")
_library.define("backward(str op, str spec, Tensor[] cotangents, Tensor?[] inputs, bool[] needs) -> Tensor[]")
_library.define("forward_keeping(str op, str spec, Tensor?[] inputs, bool[] needs) -> Tensor[]")
_library.define(
    "backward_kept(str op, str spec, Tensor[] cotangents, Tensor kept, Tensor?[] inputs, bool[] needs) -> Tensor[]"
)

_parse = functools.lru_cache(maxsize=_dispatch.CACHED)(ast.literal_eval)


def traced(name: str, flat: Flat, layout: Any, static: Any, cores: Any) -> tuple[Tensor, ...]:
    """`call` for tensors that are being traced."""
    like = next(x for x in flat if isinstance(x, Tensor) and x.is_floating_point())
    dtype = torch.float32 if is_autocast(like.device.type) and like.dtype in _dispatch.LOW_PRECISION else like.dtype
    if not torch.compiler.is_compiling():  # under a mode nothing below resolves what a list holds
        flat = [x.resolve_conj().resolve_neg() if isinstance(x, Tensor) else x for x in flat]
    inputs = [
        (x.to(dtype) if x.is_floating_point() else x).view_as(x)  # a tensor given twice must not be the same object
        if isinstance(x, Tensor)
        else (None if x is None else torch.full((), x, dtype=dtype, device=like.device))
        for x in flat
    ]
    spec = repr((layout, static, cores))
    if is_functional():
        with without_autocast(like):
            return _reference(name, layout, static, inputs)
    return tuple(torch.ops.fastmeta.forward(name, spec, inputs))


def _differentiable(name: str, spec: str, inputs: list[Tensor | None]) -> list[Tensor]:
    if not _keeps(name, spec, inputs):
        return list(Traced.apply(name, spec, None, *inputs))
    needs = [x is not None and x.requires_grad for x in inputs]
    if not any(needs):
        return _below("forward", name, spec, inputs)
    return list(Traced.apply(name, spec, needs, *inputs)[:-1])


def _differentiable_keeping(name: str, spec: str, inputs: list[Tensor | None], needs: list[bool]) -> list[Tensor]:
    return list(Traced.apply(name, spec, needs, *inputs))


def _below(node: str, *args: Any) -> list[Tensor]:
    """A node below autograd."""
    with below_autograd():
        found: list[Tensor] = getattr(torch.ops.fastmeta, node)(*args)
        return found


class Traced(torch.autograd.Function):
    """The outputs; with `kept_for`, the inputs whose gradients forward keeps, these too."""

    @staticmethod
    def forward(ctx: Any, name: str, spec: str, kept_for: list[bool] | None, *inputs: Tensor | None) -> Any:
        ctx.op, ctx.kept_for, kept = (name, spec), kept_for, None
        if kept_for is None:
            outputs = _below("forward", name, spec, list(inputs))
        else:
            outputs = _below("forward_keeping", name, spec, list(inputs), kept_for)
            kept = outputs[-1]
            ctx.mark_non_differentiable(kept)
        ctx.save_for_backward(*inputs, kept)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (name, spec), (*inputs, kept), needs = ctx.op, ctx.saved_tensors, list(ctx.needs_input_grad[3:])
        cotangents = cotangents if kept is None else cotangents[:-1]
        cotangents = tuple(d.resolve_conj().resolve_neg() for d in cotangents)
        if transforms_active() or any(map(is_batched_cotangent, cotangents)):
            grads = _by_reference(name, spec, cotangents, inputs, needs)
        elif kept is None or needs != ctx.kept_for:
            grads = torch.ops.fastmeta.backward(name, spec, list(cotangents), inputs, needs)
        else:
            grads = torch.ops.fastmeta.backward_kept(name, spec, list(cotangents), kept, inputs, needs)
        return None, None, None, *scatter(grads, needs)


def _reference(name: str, layout: Any, static: Any, inputs: Any) -> tuple[Tensor, ...]:
    return _dispatch.flat_reference(name, layout, static)(*inputs)


def _forward(name: str, spec: str, inputs: list[Tensor | None]) -> list[Tensor]:
    layout, static, cores = _parse(spec)
    device = next(x for x in inputs if x is not None).device
    inputs = all_in_memory(name, inputs)  # torch resolves no negation that a list of perhaps tensors holds
    with torch.autocast(device.type, enabled=False):
        outputs = _dispatch.run(name, tuple(inputs), layout, static, cores, device)
    return _own([y.contiguous() for y in outputs], inputs)  # as the fake ones are


def _backward(
    name: str, spec: str, cotangents: list[Tensor], inputs: list[Tensor | None], needs: list[bool]
) -> list[Tensor]:
    cotangents = all_in_memory(name, cotangents)
    with torch.enable_grad(), at_top_level():
        leaves = [
            x if x is None or not x.is_floating_point() else x.detach().requires_grad_(need)
            for x, need in zip(inputs, needs, strict=True)
        ]
        outputs = _forward(name, spec, leaves)
        wanted = [x for x, need in zip(leaves, needs, strict=True) if need and x is not None]
        grads = gradients(outputs, wanted, cotangents)
    return _own([g.contiguous() for g in grads], [*cotangents, *inputs])


def _own(outputs: Sequence[Tensor], inputs: Sequence[Tensor | None]) -> list[Tensor]:
    """A copy of every output that shares memory with an input or another output: a compiler writes over inputs it needs no more."""
    taken = {x.untyped_storage().data_ptr() for x in inputs if x is not None}
    found = []
    for y in outputs:
        place = y.untyped_storage().data_ptr()
        found.append(y.clone() if place in taken else y)
        taken.add(place)
    return found


def _differentiable_backward(
    name: str, spec: str, cotangents: list[Tensor], inputs: list[Tensor | None], needs: list[bool]
) -> list[Tensor]:
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*cotangents, *inputs)):
        return list(_by_reference(name, spec, cotangents, inputs, needs))
    return _below("backward", name, spec, cotangents, inputs, needs)


def _by_reference(name: str, spec: str, cotangents: Any, inputs: Any, needs: list[bool]) -> tuple[Tensor, ...]:
    """The gradients by the reference, under any transform, and differentiable themselves."""
    layout, static, cores = _parse(spec)
    op = Op(lambda *inputs: _reference(name, layout, static, inputs), None, None, cores)
    return op.vjp(tuple(needs))(*cotangents, *inputs)


def _keeps(name: str, spec: str, inputs: Sequence[Tensor | None]) -> bool:
    """Whether forward hands its gradients on: a fused loss of each task, where the native CPU kernels may run."""
    like = next(x for x in inputs if x is not None)
    fused = name in _dispatch.FUSED and "none" not in _parse(spec)[1]
    return fused and like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64)


def _forward_keeping(name: str, spec: str, inputs: list[Tensor | None], needs: list[bool]) -> list[Tensor]:
    """The outputs, and flat the gradients of each task's loss as the native kernel gives them, then 1; 0 where another backend ran."""
    layout, static, cores = _parse(spec)
    device = torch.device("cpu")
    if _dispatch.choose(name, device, _dispatch.forced(), inputs, layout, static) == "ext":
        op = _dispatch.op_on(name, "ext", layout, static, cores)
        assert op.forward is not None
        answer = op.forward(inputs, tuple(needs))
        if not isinstance(answer, str):
            found, made = answer
            if len(_shapes) >= _dispatch.CACHED:
                _shapes.pop(next(iter(_shapes)))
            _shapes[_key(name, spec, inputs, needs)] = [x.shape for x in made]
            flat = [x.reshape(-1) for x in made]
            return [*_own(found, inputs), torch.cat([*flat, found[0].new_ones(1)])]
    outputs = _forward(name, spec, inputs)
    return [*outputs, outputs[0].new_zeros(_kept_size(name, spec, inputs, needs, outputs))]


def _backward_kept(
    name: str, spec: str, cotangents: list[Tensor], kept: Tensor, inputs: list[Tensor | None], needs: list[bool]
) -> list[Tensor]:
    shapes = _shapes.get(_key(name, spec, inputs, needs))
    if shapes is None or not kept[-1]:
        return _backward(name, spec, cotangents, inputs, needs)
    layout, static, cores = _parse(spec)
    pieces = kept[:-1].split([shape.numel() for shape in shapes])
    made = tuple(x.clone().view(shape) for x, shape in zip(pieces, shapes, strict=True))  # the kernel writes there
    op = _dispatch.op_on(name, "ext", layout, static, cores)
    assert op.backward is not None
    grads = op.backward(cotangents, made, inputs, tuple(needs))
    return _own([g.contiguous() for g in grads], [*cotangents, kept, *inputs])


_shapes: dict[Any, list[torch.Size]] = {}  # of what a kernel keeps, by calls


def _key(name: str, spec: str, inputs: Sequence[Tensor | None], needs: Sequence[bool]) -> Any:
    return name, spec, tuple(None if x is None else x.shape for x in inputs), tuple(needs)


def _kept_size(
    name: str, spec: str, inputs: Sequence[Tensor | None], needs: Sequence[bool], outputs: Sequence[Tensor]
) -> Any:
    """Numbers in the gradients of each task's loss, and one more."""
    layout, static, cores = _parse(spec)
    of_each = _dispatch.op_on(name, "reference", layout, static, cores).cores
    size: Any = 1
    for x, core, need in zip(inputs, of_each, needs, strict=True):
        if need and x is not None:
            own = core is not None and x.ndim > core
            size = size + (x.numel() if own else x.numel() * outputs[0].numel())
    return size


def _differentiable_backward_kept(
    name: str, spec: str, cotangents: list[Tensor], kept: Tensor, inputs: list[Tensor | None], needs: list[bool]
) -> list[Tensor]:
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*cotangents, *inputs)):
        return list(_by_reference(name, spec, cotangents, inputs, needs))
    return _below("backward_kept", name, spec, cotangents, kept, inputs, needs)


def _fake_forward(name: str, spec: str, inputs: list[Tensor | None]) -> list[Tensor]:
    layout, static, _ = _parse(spec)
    outputs = _reference(name, layout, static, inputs)
    return [torch.empty(y.shape, dtype=y.dtype, device=y.device) for y in outputs]


def _fake_forward_keeping(name: str, spec: str, inputs: list[Tensor | None], needs: list[bool]) -> list[Tensor]:
    outputs = _fake_forward(name, spec, inputs)
    return [*outputs, outputs[0].new_empty(_kept_size(name, spec, inputs, needs, outputs))]


def _fake_backward(
    name: str, spec: str, cotangents: list[Tensor], inputs: list[Tensor | None], needs: list[bool]
) -> list[Tensor]:
    wanted = (x for x, need in zip(inputs, needs, strict=True) if need and x is not None)
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in wanted]


def _fake_backward_kept(
    name: str, spec: str, cotangents: list[Tensor], kept: Tensor, inputs: list[Tensor | None], needs: list[bool]
) -> list[Tensor]:
    return _fake_backward(name, spec, cotangents, inputs, needs)


for _name, _runs, _of_autograd, _fake in (
    ("forward", _forward, _differentiable, _fake_forward),
    ("backward", _backward, _differentiable_backward, _fake_backward),
    ("forward_keeping", _forward_keeping, _differentiable_keeping, _fake_forward_keeping),
    ("backward_kept", _backward_kept, _differentiable_backward_kept, _fake_backward_kept),
):
    _library.impl(_name, _runs, "CompositeExplicitAutograd")
    _library.impl(_name, _of_autograd, "Autograd")
    torch.library.register_fake(f"fastmeta::{_name}", _fake, lib=_library)

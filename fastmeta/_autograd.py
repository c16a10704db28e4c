"""Turns a reference and its kernels into a function whose derivatives of every order are right.

An `Op` is one op on one backend. Its order 0 runs the `<op>_fwd` kernel, its order 1 (the vector-Jacobian product) the
`<op>_bwd` kernel, autograd's order 2 an `<op>_bwd2` kernel where there is one, and everything beyond comes from differentiating
the reference. Which machinery carries a call:

    no gradient asked for        the bare kernel
    autograd                     `Eager`: a ctx-style Function whose backward is order 1, itself differentiable
    torch.func grad and vmap     `Transformed`: a setup_context Function; vmap folds the new axis into the tasks
    forward-mode AD              the reference
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._memory import in_memory
from ._replay import Replayed
from ._torch import (
    Transform,
    any_requires_grad,
    is_batched_cotangent,
    is_forward_mode,
    is_functional,
    transforms,
    transforms_active,
    without_subclasses,
)

Flat = Sequence[Any]  # tensors, None and numbers, in the order of the op's arguments
Needs = tuple[bool, ...]
# (flat, needs) -> (outputs, saved), or why the kernel declines; (cotangents, saved, flat, needs) -> gradients of the inputs that are needed
Forward = Callable[[Flat, Needs], tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | str]
Backward = Callable[[Flat, Flat, Flat, Needs], tuple[Tensor, ...]]
# (cotangents, those of order 1, flat, needs of order 1, needs) -> gradients to order 1's cotangents and to the inputs
Backward2 = Callable[[Flat, Flat, Flat, Needs, Needs], tuple[Tensor, ...]]

_NOTHING = contextlib.nullcontext()
_REVERSE = (Transform.Grad, Transform.Vmap)


class Op:
    """`reference` maps flat inputs to a tuple of tensors; `cores` gives each input's rank without its task axis (None: it
    never has one); `like_inputs` says which inputs the outputs are gradients of (order 1), or None (order 0)."""

    def __init__(
        self,
        reference: Callable[..., tuple[Tensor, ...]],
        forward: Forward | None,
        backward: Backward | None,
        cores: Sequence[int | None],
        like_inputs: tuple[int, ...] | None = None,
        backward2: Backward2 | None = None,
    ) -> None:
        self.reference, self.forward, self.backward, self.backward2 = reference, forward, backward, backward2
        self.cores, self.like_inputs = tuple(cores), like_inputs
        self.vjp = functools.lru_cache(maxsize=64)(self._vjp)

    @functools.cached_property
    def eager(self) -> type[torch.autograd.Function]:
        return _eager(self)

    @functools.cached_property
    def transformed(self) -> type[torch.autograd.Function]:
        return _transformed(self)

    @functools.cached_property
    def value_and_gradients(self) -> Callable[[Flat, Needs], tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | str]:
        """(flat, needs) -> the outputs, and the gradients of their sum; or why the kernel declines."""

        def run(flat: Flat, needs: Needs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | str:
            assert self.forward is not None
            answer = self.forward(flat, needs)
            if self.backward is None or isinstance(answer, str):
                return "no backward"
            outputs, saved = answer
            return outputs, self.backward(tuple(map(torch.ones_like, outputs)), saved, flat, needs)

        return Replayed(run, 1, self.forward.launches) if isinstance(self.forward, Replayed) else run

    def __call__(self, *flat: Any) -> tuple[Tensor, ...]:
        if self.forward is None:
            return self.reference(*flat)
        if is_functional():
            return self.transformed.apply(*flat) if _reverse_mode_only() else self.reference(*flat)
        answer = self.untransformed(flat)
        if isinstance(answer, str):
            elsewhere = any(isinstance(x, Tensor) and in_memory(x) is None for x in flat)
            raise (TypeError if elsewhere else ValueError)(answer)
        return answer

    def untransformed(self, flat: Flat, in_memory: bool = False) -> tuple[Tensor, ...] | str:
        """self(*flat) by the kernel, or why it declines, where neither a transform of torch.func nor forward-mode AD is active.
        `in_memory`: no tensor is one that a transform has left."""
        assert self.forward is not None
        if torch.is_grad_enabled() and any_requires_grad(*flat):
            function: Any = super(torch.autograd.Function, self.eager) if in_memory else self.eager
            return function.apply(*flat)  # type: ignore[no-any-return]
        answer = self.forward(flat, (False,) * len(flat))
        return answer if isinstance(answer, str) else answer[0]

    def _vjp(self, needs: Needs) -> Op:
        """Order 1 for the inputs that `needs` marks: (cotangents, inputs) -> their gradients."""
        wanted = tuple(i for i, need in enumerate(needs) if need)

        def reference(*args: Any) -> tuple[Tensor, ...]:
            cotangents, inputs = args[: -len(needs)], list(args[-len(needs) :])

            def of_wanted(*tensors: Tensor) -> tuple[Tensor, ...]:
                for i, tensor in zip(wanted, tensors, strict=True):
                    inputs[i] = tensor
                return self.reference(*inputs)

            pullback = torch.func.vjp(of_wanted, *(inputs[i] for i in wanted))[1]
            return tuple(g.view_as(g) for g in pullback(cotangents))  # a cotangent may come back as it is

        def forward(args: Flat, _: Needs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            assert self.backward is not None
            grads = self.backward(args[: -len(needs)], (), args[-len(needs) :], needs)
            return tuple(g.view_as(g) for g in grads), ()

        def backward(cotangents: Flat, _: Flat, args: Flat, needed: Needs) -> tuple[Tensor, ...]:
            assert self.backward2 is not None
            return self.backward2(cotangents, args[: -len(needs)], args[-len(needs) :], needs, needed)

        has_kernel = self.backward is not None and self.like_inputs is None
        return Op(reference, forward if has_kernel else None, backward if self.backward2 else None, self.cores, wanted)


def scatter(grads: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """The gradients at the places that `needs` marks, None elsewhere."""
    found = iter(grads)
    return [next(found) if need else None for need in needs]


def gradients(
    outputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> tuple[Tensor, ...]:
    """torch.autograd.grad, also where outputs depend on nothing: an inner loop gives a frozen parameter back as it is."""
    places = [i for i, y in enumerate(outputs) if y.requires_grad]
    if not places or not wanted:
        return tuple(map(torch.zeros_like, wanted))
    return torch.autograd.grad(
        [outputs[i] for i in places], wanted, None if cotangents is None else [cotangents[i] for i in places],
        retain_graph, create_graph, allow_unused=True, materialize_grads=True,
    )  # fmt: skip


def _reverse_mode_only() -> bool:
    """Whether the active transforms are torch.func.grad/vjp and vmap alone, which the kernels can serve."""
    return not is_forward_mode() and all(kind in _REVERSE for kind in transforms())


def _eager(op: Op) -> type[torch.autograd.Function]:
    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *flat: Any) -> Any:
            assert op.forward is not None
            answer = op.forward(flat, ctx.needs_input_grad)
            if isinstance(answer, str):
                return answer
            outputs, saved = answer
            ctx.save_for_backward(*[x if isinstance(x, Tensor) else None for x in flat], *saved)
            ctx.numbers, ctx.untouched = [None if isinstance(x, Tensor) else x for x in flat], True
            return outputs

        @staticmethod
        def backward(ctx: Any, *cotangents: Tensor) -> Any:
            needs = ctx.needs_input_grad
            kept = ctx.saved_tensors  # once: a checkpoint recomputes at every access
            inputs = [number if x is None else x for x, number in zip(kept, ctx.numbers, strict=False)]
            if any(map(is_batched_cotangent, cotangents)):
                # A subclass converts what comes out, for which torch has no rule here.
                with without_autocast(cotangents[0]), without_subclasses():
                    grads = op.vjp(needs).reference(*cotangents, *inputs)
            elif op.backward and not torch.is_grad_enabled() and not transforms_active():
                # A kernel never asks for autocast.
                # It may write into what forward saved: a second pass over the graph does not get that again.
                saved = kept[len(inputs) :] if ctx.__dict__.pop("untouched", False) else ()
                grads = op.backward(cotangents, saved, inputs, needs)
            else:
                with without_autocast(cotangents[0]):
                    grads = op.vjp(needs)(*cotangents, *inputs)
            return tuple(scatter(grads, needs))

    return Eager


def _transformed(op: Op) -> type[torch.autograd.Function]:
    class Transformed(torch.autograd.Function):
        @staticmethod
        def forward(*flat: Any) -> Any:
            return op(*flat)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs))
            ctx.numbers = [None if isinstance(x, Tensor) else x for x in inputs]

        @staticmethod
        def backward(ctx: Any, *cotangents: Tensor) -> Any:
            flat = tuple(n if t is None else t for t, n in zip(ctx.saved_tensors, ctx.numbers, strict=True))
            with without_autocast(cotangents[0]):
                grads = op.vjp(ctx.needs_input_grad)(*cotangents, *flat)
            return tuple(scatter(grads, ctx.needs_input_grad))

        @staticmethod
        def vmap(info: Any, in_dims: Any, *flat: Any) -> Any:
            outputs = _vmapped(op, info.batch_size, in_dims, flat)
            return outputs, (0,) * len(outputs)

    return Transformed


def _vmapped(op: Op, size: int, in_dims: Sequence[int | None], flat: Flat) -> tuple[Tensor, ...]:
    """Run `op` on inputs with one more batch axis, folded into the task axis; outputs have it in front."""
    cores = [0] * (len(flat) - len(op.cores)) + list(op.cores)  # order 1: cotangents come first
    moved = [x if d is None else x.movedim(d, 0) for x, d in zip(flat, in_dims, strict=True)]
    first = len(flat) - len(op.cores)
    leads = [
        x.ndim - (d is not None) - c if isinstance(x, Tensor) and c is not None and i >= first else None
        for i, (x, d, c) in enumerate(zip(moved, in_dims, cores, strict=True))
    ]
    fixed = [i for i in range(first, len(flat)) if cores[i] is None and isinstance(flat[i], Tensor)]
    batched_fixed = any(in_dims[i] is not None for i in fixed)
    wants_fixed = op.like_inputs is not None and any(first + i in fixed for i in op.like_inputs)
    if batched_fixed or wants_fixed:
        return torch.vmap(op.reference, tuple(in_dims))(*flat)

    has_tasks = any(lead == 1 for lead in leads)
    tasks = next(
        (x.shape[int(d is not None)] for x, d, lead in zip(moved, in_dims, leads, strict=True) if lead == 1), 1
    )

    def fold(x: Any, d: int | None, lead: int | None, is_cotangent: bool) -> Any:
        if not isinstance(x, Tensor) or (lead is None and not is_cotangent):
            return x
        x = x if d is not None else x.expand(size, *x.shape)
        if not has_tasks:
            return x
        if lead == 0:  # shared by the tasks: one copy for each
            x = x.unsqueeze(1).expand(size, tasks, *x.shape[1:])
        return x.flatten(0, 1)

    folded = [fold(x, d, lead, i < first) for i, (x, d, lead) in enumerate(zip(moved, in_dims, leads, strict=True))]
    outputs = op(*folded)
    if not has_tasks:
        return outputs
    outputs = tuple(y.unflatten(0, (size, tasks)) for y in outputs)
    if op.like_inputs is None:
        return outputs
    return tuple(y.sum(1) if leads[first + i] == 0 else y for y, i in zip(outputs, op.like_inputs, strict=True))


def without_autocast(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context in which the reference computes in the dtype of its inputs."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if is_autocast(device) else _NOTHING


def is_autocast(device: str) -> bool:
    """Whether tensors of the device are under autocast, which "meta" does not know."""
    return device != "meta" and torch.is_autocast_enabled(device)

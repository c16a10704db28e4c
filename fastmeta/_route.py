"""Where the call of an op goes. The first that fits decides:

1. Nothing looks on (no trace, mode, transform, forward-mode AD, autocast): CPU tensors to the native kernel at once, which checks
   its arguments itself, CUDA tensors to where others that look like them went (`direct`). What the kernel declines goes on.
2. Wrong arguments: the public function says what must hold.
3. torch.compile, torch.export, a TorchDispatchMode: into the graph as a node, which comes back here when it runs. Under torch.func too:
   the reference is traced (`_compile.traced`).
4. Autocast: on, in float32.
5. torch.jit.trace: to the reference, whose operations it records.
6. grad, vjp and vmap of torch.func: to a backend, in a Function that torch.func knows (`_autograd.Op.transformed`).
7. jvp, linearize, forward-mode AD: to the reference.
8. Any other: to the first backend of `_dispatch.ORDER` that takes it, or to the one that is forced (`_dispatch.choose`).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _dispatch
from ._asked import asked
from ._autograd import Flat, Op, is_autocast
from ._compile import traced
from ._dispatch import CACHED, LOW_PRECISION, choose, first_that_runs, forced, op_on, run
from ._layout import Layout, flatten, has_lists
from ._replay import describe
from ._torch import is_plain, is_traced

UNSEEN = {"cuda"}  # devices whose values no check looks at: it would wait for them


def call(name: str, args: Sequence[Any], static: tuple[Any, ...], cores: Sequence[Any]) -> tuple[Tensor, ...]:
    """Run op `name` on `args` (tensors, numbers, None, or lists of them), its `static` arguments fixed.

    `cores` gives, for each argument, its rank without the task axis (for a list: a tuple that is cycled through), or None
    where the argument never has one. Returns the outputs, flat.
    """
    flat, layout = flatten(args)
    if is_traced():
        return traced(name, flat, layout, static, tuple(cores))
    device = next(x.device for x in flat if isinstance(x, Tensor))
    if is_autocast(device.type):
        flat = tuple(x.float() if isinstance(x, Tensor) and x.dtype in LOW_PRECISION else x for x in flat)
        with torch.autocast(device.type, enabled=False):
            return run(name, flat, layout, static, tuple(cores), device)
    answer = run(name, flat, layout, static, tuple(cores), device)
    if _short.met is not None:
        _short.checked(name, flat, layout, static, tuple(cores))
    return answer


def direct(
    name: str, args: tuple[Any, ...], static: tuple[Any, ...], cores: tuple[Any, ...]
) -> tuple[Tensor, ...] | None:
    """The short way for small calls: what the native CPU kernel answers, which checks its arguments itself, or the kernel of another
    device for arguments that look like those of an earlier call, which were checked.

    None where the general way has to decide, or to say what is wrong: arguments that the kernel declines, another backend, a call
    that is traced, transformed or under autocast.
    """
    if not is_plain():
        return None
    flat, layout = flatten(args) if has_lists(cores) else (args, (None,) * len(args))
    if not (flat and isinstance(flat[0], Tensor)):
        return None
    device = "cpu" if flat[0].is_cpu else flat[0].device.type
    if (device != "cpu" and device not in UNSEEN) or torch.is_autocast_enabled(device):
        return None
    if device in UNSEEN:
        op, is_native = _short.known(name, flat, layout, static)
    else:
        op, is_native = _native(name, layout, static, cores, forced()), True
    if op is None:
        return None
    if asked.op != name:
        answer = op.untransformed(flat, in_memory=device in UNSEEN)
    elif is_native:
        answer = asked.answer(flat, layout, static, args)
    else:
        answer = asked.answer_of(op, flat, layout)
    return None if isinstance(answer, str) else answer


def natively(
    name: str, args: tuple[Any, ...], static: tuple[Any, ...], cores: tuple[Any, ...]
) -> tuple[Tensor, ...] | None:
    """`direct`; and where that does not know the call, on CUDA, the extension's kernels, which check their arguments too. None where
    neither takes it."""
    found = direct(name, args, static, cores)
    if found is not None:
        return found
    flat, layout = flatten(args)
    first = flat[0]
    if not (is_plain() and isinstance(first, Tensor)) or is_autocast(first.device.type):
        return None
    if (first.is_cpu and forced() in (*_dispatch.BACKENDS, "auto")) or first.dtype in LOW_PRECISION:
        return None
    chosen, _ = first_that_runs(name, first.device, forced(), flat, layout, static)
    if chosen in (None, "triton", "reference"):
        return None
    answer = op_on(name, str(chosen), layout, static, cores).untransformed(flat)
    if isinstance(answer, str):
        return None
    _short.checked(name, flat, layout, static, cores)
    return answer


def pullback(
    name: str,
    args: tuple[Any, ...],
    static: tuple[Any, ...],
    cores: tuple[Any, ...],
    needs: tuple[bool, ...],
    *cotangents: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients of the op's flat inputs that `needs` marks, for the cotangents of its outputs, which are not computed: plain tensors
    of one precision, checked before."""
    flat, layout = flatten(args)
    device = next(x.device for x in flat if isinstance(x, Tensor))
    chosen = choose(name, device, forced(), flat, layout, static)
    op = op_on(name, chosen, layout, static, cores)
    return op.backward(cotangents, (), flat, needs) if op.backward else op.vjp(needs)(*cotangents, *flat)


class _Short(threading.local):
    """The ops that calls went to once they were checked, and whether these are native, by what their arguments look like; and such a key
    that waits for it."""

    def __init__(self) -> None:
        self.ops: dict[Any, tuple[Op | None, bool]] = {}
        self.met: Any = None

    def known(
        self, name: str, flat: tuple[Any, ...], layout: Layout, static: tuple[Any, ...]
    ) -> tuple[Op | None, bool]:
        described = describe(flat)
        self.met = None if described is None else (name, layout, static, forced(), described[0])
        return self.ops.get(self.met, _UNKNOWN)

    def checked(self, name: str, flat: Flat, layout: Layout, static: tuple[Any, ...], cores: tuple[Any, ...]) -> None:
        """Remembers the call that was met, where the general way has run it with its arguments as they were."""
        key, self.met, described = self.met, None, describe(flat)
        if described is None or key != (name, layout, static, forced(), described[0]):
            return
        first = next(x for x in flat if isinstance(x, Tensor))
        chosen = choose(name, first.device, forced(), flat, layout, static)
        if chosen == "reference" or (chosen == "ext" and first.dtype in LOW_PRECISION):  # which is widened
            return
        if len(self.ops) >= CACHED:
            self.ops.clear()
        self.ops[key] = op_on(name, chosen, layout, static, cores), chosen == "ext"


_UNKNOWN = None, False
_short = _Short()


def natively_with_gradients(
    name: str,
    args: tuple[Any, ...],
    static: tuple[Any, ...],
    cores: tuple[Any, ...],
    needs: tuple[bool, ...],
    cotangents: tuple[Tensor, ...],
    kernel: str = "value_and_grad",
) -> tuple[tuple[Tensor, ...], list[Tensor]] | None:
    """The outputs of op `name` on CPU tensors, one native kernel with a `<op>_value_and_grad`, and the gradients of sum(cotangents *
    outputs) to the inputs that `needs` marks. None where `direct` has to decide. `kernel`: another such."""
    layout = tuple([len(a) if isinstance(a, list | tuple) else None for a in args])
    if not is_plain() or torch.is_autocast_enabled("cpu") or _native(name, layout, static, cores, forced()) is None:
        return None
    native = getattr(_dispatch._module(name, "ext"), f"{name}_{kernel}")
    answer = native(*args, *static, needs, cotangents)
    return None if isinstance(answer, str) else answer


@functools.lru_cache(maxsize=CACHED)
def _native(name: str, layout: Layout, static: tuple[Any, ...], cores: tuple[Any, ...], backend: str) -> Op | None:
    """The op on the native CPU kernels, where they have it; what is beyond its limits the kernel declines."""
    if any(length is not None and isinstance(core, int) for length, core in zip(layout, cores, strict=True)):
        return None  # a list in the place of a tensor
    first, why_not, _ = _dispatch._candidates(name, torch.device("cpu"), backend)[0]
    return op_on(name, "ext", layout, static, cores) if first == "ext" and why_not is None else None

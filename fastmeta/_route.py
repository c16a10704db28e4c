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
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _dispatch
from ._autograd import Flat, Op, is_autocast, scatter
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
    if _asked.op != name:
        answer = op.untransformed(flat, in_memory=device in UNSEEN)
    elif is_native:
        answer = _asked.answer(flat, layout, static, args)
    else:
        answer = _asked.answer_of(op, flat, layout)
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


Places = tuple[int | tuple[int, int], ...]


class _Asked(threading.local):
    """What `with_gradients` asks of an op that is called: gradients to its arguments at `places`, (i, j) for entry j of a list."""

    op: str | None = None
    places: Places = ()
    out: tuple[Tensor, ...] = ()
    cotangents: tuple[Tensor, ...] | None = None
    gradients: list[Any] | None = None

    def answer(
        self, flat: tuple[Any, ...], layout: Layout, static: tuple[Any, ...], args: tuple[Any, ...]
    ) -> tuple[Tensor, ...] | str:
        assert self.op is not None
        if layout.count(None) != len(layout):
            return self._answer_with_lists(flat, layout, static, args)
        native, needs, order = _with_gradients(self.op, len(flat), self.places)
        answer = (
            native(*flat, *static, needs, self.cotangents)
            if not self.out
            else self._into_out(native, flat, flat, static, needs)
        )
        if isinstance(answer, str):
            return answer
        outputs, found = answer
        self.gradients = found if order is None else [found[i] for i in order]
        return outputs  # type: ignore[no-any-return]

    def answer_of(self, op: Op, flat: tuple[Any, ...], layout: Layout) -> tuple[Tensor, ...] | str:
        """The same by an op's forward and backward."""
        if self.cotangents is not None:
            return "cotangents"
        needs = self._needs(flat, layout)
        answer = op.value_and_gradients(flat, needs)
        if isinstance(answer, str):
            return answer
        outputs, found = answer
        self._sort(found, needs, layout)
        return outputs

    def _needs(self, flat: tuple[Any, ...], layout: Layout) -> tuple[bool, ...]:
        wanted, _ = _at(self.places, layout)
        return tuple([want and isinstance(x, Tensor) for want, x in zip(wanted, flat, strict=True)])

    def _sort(self, found: Sequence[Tensor], needs: tuple[bool, ...], layout: Layout) -> None:
        """`found`, for each True of `needs`, becomes the gradients."""
        flat = scatter(found, needs)
        self.gradients = [flat[begin] if end is None else flat[begin:end] for begin, end in _at(self.places, layout)[1]]

    def _answer_with_lists(
        self, flat: tuple[Any, ...], layout: Layout, static: tuple[Any, ...], args: tuple[Any, ...]
    ) -> tuple[Tensor, ...] | str:
        assert self.op is not None
        native = _with_gradients(self.op, 0, ())[0]
        needs = self._needs(flat, layout)
        answer = (
            native(*args, *static, needs, self.cotangents)
            if not self.out
            else self._into_out(native, flat, args, static, needs)
        )
        if isinstance(answer, str):
            return answer
        outputs, found = answer
        self._sort(found, needs, layout)
        return outputs  # type: ignore[no-any-return]

    def _into_out(self, native: Callable[..., Any], flat: Any, args: Any, static: Any, needs: Any) -> Any:
        """The kernel's answer, in the memory of `out` as far as it serves."""
        module = _dispatch._module("value_and_grad", "ext")
        module.give_outputs(self.out, flat)
        try:
            return native(*args, *static, needs, self.cotangents)
        finally:
            module.give_outputs((), ())


@functools.lru_cache(maxsize=CACHED)
def _at(places: Places, layout: Layout) -> tuple[list[bool], list[tuple[int, int | None]]]:
    """Of arguments in this layout, made flat: which are those at `places`; and of each of these where it begins and, a list, ends."""
    lengths = [1 if length is None else length for length in layout]
    begins = [sum(lengths[:i]) for i in range(len(layout))]
    wanted = [i in places or (i, j) in places for i, length in enumerate(lengths) for j in range(length)]

    def span(place: int | tuple[int, int]) -> tuple[int, int | None]:
        if isinstance(place, tuple):
            return begins[place[0]] + place[1], None
        return begins[place], None if layout[place] is None else begins[place] + lengths[place]

    return wanted, [span(place) for place in places]


@functools.lru_cache(maxsize=CACHED)
def _with_gradients(
    name: str, count: int, places: Any
) -> tuple[Callable[..., Any], tuple[bool, ...], list[int] | None]:
    """The kernel that finds the gradients too, which of `count` arguments need one, and where among what it finds those at `places`
    are; None: they are in order."""
    native = getattr(_dispatch._module(name, "ext"), f"{name}_value_and_grad")
    order = [sorted(places).index(i) for i in places]
    return native, tuple([i in places for i in range(count)]), None if order == sorted(order) else order


_asked = _Asked()


def with_gradients(
    name: str,
    places: Places,
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    out: tuple[Tensor, ...] = (),
    cotangents: tuple[Tensor, ...] | None = None,
) -> tuple[Any, list[Any] | None]:
    """fn(*args, **kwargs), which calls op `name`, one with a native `<op>_value_and_grad`; and the gradients of the sum of the op's
    outputs to its arguments at `places`. These outputs then have no graph. None in place of the gradients where the op did not go to
    the native kernel at once. `out`: tensors that results may take as their memory. `cotangents`: what
    each output counts in the sum."""
    _asked.op, _asked.places, _asked.out, _asked.cotangents, _asked.gradients = name, places, out, cotangents, None
    try:
        value = fn(*args, **kwargs)
        return value, _asked.gradients
    finally:
        _asked.op = _asked.gradients = None


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

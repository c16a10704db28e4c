"""Values and gradients of an op in one native call: what is asked of it while the public function runs."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from . import _dispatch
from ._autograd import Op, scatter
from ._dispatch import CACHED
from ._layout import Layout

Places = tuple[int | tuple[int, int], ...]


class Asked(threading.local):
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


asked = Asked()


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
    asked.op, asked.places, asked.out, asked.cotangents, asked.gradients = name, places, out, cotangents, None
    try:
        value = fn(*args, **kwargs)
        return value, asked.gradients
    finally:
        asked.op = asked.gradients = None

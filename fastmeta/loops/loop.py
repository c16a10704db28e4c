"""An inner loop as `unroll` is given it, and what is noted of each evaluation so that it can be repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._torch import is_looked_at
from ..networks.chain import Noise, noise_of, restore
from .optimisers import InnerOptimiser

Step = tuple[str, int]  # "step" or "outer", and its number


class Slot(NamedTuple):
    """A tensor among the items of a loop; or, where it has [steps] in front, its part of a step."""

    place: int
    per_step: bool


@dataclass(frozen=True)
class Loop:
    """The items are all tensors that it is given: parameters, then their state, then others, which slots point to. Each parameter has
    as many tensors of state, one parameter after the other."""

    loss: Callable[[Sequence[Tensor], Sequence[Any]], Tensor]  # parameters, batch -> [] or [T]
    outers: Sequence[
        Callable[[Sequence[Tensor]], Tensor] | None
    ]  # after each step; none: the parameters are the result
    optimiser: InnerOptimiser
    values: Mapping[str, Sequence[Any]]  # of the optimiser: for each parameter a number or a slot
    batches: Callable[[int], Sequence[Any]]  # k -> what stands in the batch: slots, or as it is
    drawn: bool  # whether `batches` makes the tensors themselves
    params: int
    steps: int
    before: int  # steps that the state has behind it
    every: int  # of so many steps one is kept
    first_order: bool

    @property
    def moving(self) -> int:
        """How many of the items a step changes."""
        return self.params * (1 + len(self.optimiser.names))

    @property
    def kept(self) -> list[int]:
        """The points that are kept beside the first, by the steps before them."""
        return [*range(self.every, self.steps, self.every), *([self.steps] if self.outers else [])]

    def slots(self, k: int, of: str) -> list[Slot]:
        """Those of the optimiser's "values", or of the "batch", of step k."""
        if of == "values":
            found = [entry for entries in self.values.values() for entry in entries]
        else:
            found = [] if self.drawn else list(self.batches(k))
        return list(dict.fromkeys(x for x in found if isinstance(x, Slot)))

    def at(self, k: int, items: Sequence[Tensor]) -> dict[Slot, Tensor]:
        """The tensors of step k by their slots."""
        slots = {*self.slots(k, "values"), *self.slots(k, "batch")}
        return {slot: items[slot.place][k] if slot.per_step else items[slot.place] for slot in slots}

    def total(self, k: int, theta: Sequence[Tensor], given: Mapping[Slot, Tensor]) -> Tensor:
        """The loss of step k, of all tasks together."""
        batch = [given[x] if isinstance(x, Slot) else x for x in self.batches(k)]
        return self.loss(theta, batch).sum()

    def outer(self, k: int, theta: Sequence[Tensor]) -> Tensor:
        """The loss that counts after step k."""
        function = self.outers[k]
        assert function is not None
        return function(theta)

    def counted(self) -> list[int]:
        """The steps after which a loss counts."""
        return [k for k, function in enumerate(self.outers) if function is not None]

    def update(
        self, k: int, point: Sequence[Tensor], grads: Sequence[Tensor], given: Mapping[Slot, Tensor]
    ) -> list[Tensor]:
        """Parameters and state after step k."""
        values, count = self._values(given), self.before + k + 1
        theta, found = self.optimiser.updates(point[: self.params], grads, self._states(point), count, values)
        return [*theta, *(s for state in found for s in state)]

    def pullback(
        self,
        k: int,
        point: Sequence[Tensor],
        grads: Sequence[Tensor],
        given: Mapping[Slot, Tensor],
        v: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor], dict[Slot, Tensor]] | None:
        """From v, the gradients to what `update` gives, in one launch those to the point, to grads and to the optimiser's values; None
        where there is no such launch."""
        values, n = self._values(given), self.params
        found = self.optimiser.pullback(
            point[:n], grads, self._states(point), self.before + k + 1, values, v[:n], self._states(v)
        )
        if found is None:
            return None
        of_slot = dict[Slot, Tensor]()
        slots = {id(x): slot for slot, x in given.items()}
        for value, gradient in found.learned:
            slot = slots[id(value)]
            of_slot[slot] = of_slot[slot] + gradient if slot in of_slot else gradient
        return [*found.theta, *(s for state in found.states for s in state)], found.grads, of_slot

    def _states(self, point: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """Of each parameter, in a point or in gradients to one."""
        n, each = self.params, len(self.optimiser.names)
        return [point[n + i * each : n + (i + 1) * each] for i in range(n)]

    def _values(self, given: Mapping[Slot, Tensor]) -> list[dict[str, Any]]:
        """The optimiser's, of each parameter."""
        return [
            {name: given[x] if isinstance(x := entries[i], Slot) else x for name, entries in self.values.items()}
            for i in range(self.params)
        ]


@dataclass
class Replay:
    """Of each evaluation of a loss, what its random numbers start from and its value: noted the first time, then given back and
    compared."""

    like: Tensor  # on the device whose random numbers count
    notes: dict[Step, tuple[Noise, Tensor]] = field(default_factory=dict)
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    last: Noise | None = None

    def __call__(self, step: Step, function: Callable[[], Tensor]) -> Tensor:
        if step in self.notes:
            noise, then = self.notes[step]
            restore(noise)
            value = function()
            self.pairs.append((then, value.detach()))
            return value
        noise = noise_of(self.like)
        if self.last is not None and _same(noise, self.last):
            noise = self.last  # one copy
        self.last = noise
        value = function()
        self.notes[step] = noise, value.detach()
        return value

    def compare(self, tolerance: torch.dtype) -> None:
        """RuntimeError where a loss was another the second time. Nothing waits for a GPU: there the values are not looked at."""
        pairs, self.pairs = self.pairs, []
        if not pairs or is_looked_at() or any(x.device.type != "cpu" for x in pairs[0]):
            return
        then, now = (
            torch.stack([x if x.ndim == 0 else x.sum() for x in side]).double() for side in zip(*pairs, strict=True)
        )
        rtol = torch.finfo(tolerance).eps ** 0.5
        same = torch.isclose(now, then, rtol=rtol, atol=rtol, equal_nan=True)
        if not same.all():
            raise RuntimeError(
                f"unroll: loss, batches and outer must give on the way back what they gave before, got "
                f"{now[~same][0].item():.6g} after {then[~same][0].item():.6g}"
            )


def _same(a: Noise, b: Noise) -> bool:
    return torch.equal(a[0], b[0]) and (a[2] is None or b[2] is None or torch.equal(a[2], b[2]))


def segments(loop: Loop) -> Iterator[range]:
    """The steps between two that are kept, the last ones first."""
    for first in reversed(range(0, loop.steps, loop.every)):
        yield range(first, min(first + loop.every, loop.steps))

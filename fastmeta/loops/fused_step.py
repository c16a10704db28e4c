"""A step of an inner optimiser on all parameters by one op, and its pullback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from .._dispatch import LOW_PRECISION
from .._torch import is_batched_cotangent, is_plain
from ..inner._optimiser_step import stateful, stateful_pullback
from ..reference.momentum_step import decayed, plus

Values = Sequence[Mapping[str, Any]]  # of each parameter, a number or a tensor by name


class Pulled(NamedTuple):
    """The gradients to a step's parameters, gradients and states, and for each rate and decay that asks for one (it, its gradient)."""

    theta: list[Tensor]
    grads: list[Tensor]
    states: list[list[Tensor]]
    learned: list[tuple[Tensor, Tensor]]


class FusedStep(NamedTuple):
    """The op; its numbers beside lists and rates; those that may be tensors elsewhere; static arguments. A weight decay that is not one
    number for all parameters comes before it."""

    op: str
    more: tuple[float, ...]
    numbers: dict[str, float]
    static: tuple[Any, ...]

    def run(
        self, theta: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[Sequence[Tensor]], values: Values
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Parameters and states after the step."""
        names = [f"params[{i}]" for i in range(len(theta))]
        lists = self._lists(theta, grads, states, values)
        new, *kinds = stateful(self.op, names, lists, _rates(values), self.more, self.numbers, self.static)
        return new, _by_param(kinds, len(theta))

    def pullback(
        self,
        theta: Sequence[Tensor],
        grads: Sequence[Tensor],
        states: Sequence[Sequence[Tensor]],
        values: Values,
        dtheta: Sequence[Tensor],
        dstates: Sequence[Sequence[Tensor]],
    ) -> Pulled | None:
        """From the gradients to what `run` gives; None where autograd must see each operation, or precisions differ."""
        cotangents = [*dtheta, *(x for kind in _by_kind(dstates) for x in kind)]
        if theta[0].dtype in LOW_PRECISION or not is_plain() or any(map(is_batched_cotangent, cotangents)):
            return None
        lists, rates, decays = self._lists(theta, grads, states, values), _rates(values), _decays(values)
        given = lists, rates, self.more, self.numbers, self.static
        (of_theta, of_grads, *kinds), drates = stateful_pullback(self.op, *given, cotangents)
        learned = list(zip(filter(_asks, rates), drates, strict=True))
        if not is_same_number(decays):
            of_theta = [plus(d, g, x) for d, g, x in zip(of_theta, of_grads, decays, strict=True)]
            each = zip(decays, of_grads, theta, strict=True)
            learned += [(x, (g * p).sum_to_size(x.shape)) for x, g, p in each if _asks(x)]
        return Pulled(of_theta, of_grads, _by_param(kinds, len(theta)), learned)

    def _lists(
        self, theta: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[Sequence[Tensor]], values: Values
    ) -> list[list[Tensor]]:
        decays = _decays(values)
        if not is_same_number(decays):
            grads = [decayed(p, g, x) for p, g, x in zip(theta, grads, decays, strict=True)]
        return [list(theta), list(grads), *_by_kind(states)]


def fuses(theta: Sequence[Tensor], grads: Sequence[Tensor], values: Values) -> bool:
    """Whether a fused step takes them: plain tensors of one dtype on one device, numbers that are the same for all parameters, rates that
    it knows, and such weight decays."""
    first, *_ = theta

    def is_like(x: Tensor) -> bool:
        return x.dtype == first.dtype and x.device == first.device

    plain = all(type(x) in (Tensor, nn.Parameter) and is_like(x) for x in (*theta, *grads))
    rates, decays = [v["lr"] for v in values], _decays(values)
    known = all(
        isinstance(r, float) or (is_like(r) and (not r.ndim or r.shape == p.shape))
        for r, p in zip(rates, theta, strict=True)
    )
    before = first.dtype not in LOW_PRECISION and all(isinstance(x, float) or is_like(x) for x in decays)
    numbers = [name for name in values[0] if name not in ("lr", "weight_decay")]
    same = all(is_same_number([v[name] for v in values]) for name in numbers)
    return plain and known and same and (before or is_same_number(decays))


def is_same_number(values: Sequence[Any]) -> bool:
    return isinstance(values[0], float) and all(isinstance(x, float) and x == values[0] for x in values)


def _decays(values: Values) -> list[Any]:
    return [v["weight_decay"] for v in values]


def _rates(values: Values) -> list[Any]:
    """Those of the parameters, or one where they are one number."""
    first, *others = (v["lr"] for v in values)
    same = all(r is first for r in others) and not (isinstance(first, Tensor) and first.ndim)
    return [first] if same else [first, *others]


def _asks(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _by_kind(states: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """The parameters' states as lists of the parameters' first, second, ..."""
    return [list(kind) for kind in zip(*states, strict=True)]


def _by_param(kinds: Sequence[Sequence[Tensor]], count: int) -> list[list[Tensor]]:
    return [list(state) for state in zip(*kinds, strict=True)] or [[] for _ in range(count)]

"""Steps that are more than theta - alpha g: which, and as the native ops take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...loops.optimisers import InnerOptimiser

# From the parameters, their gradients and the rates to the parameters after the next step, whose state it keeps.
Stepper = Callable[[list[Tensor], Sequence[Tensor], Any], list[Tensor]]


@dataclass(frozen=True)
class Method:
    """An optimiser that starts without a state, but for its rates."""

    kind: type[InnerOptimiser]
    numbers: tuple[tuple[str, Any], ...]

    def optimiser(self, rates: Any) -> InnerOptimiser:
        options: Any = dict(self.numbers)
        return self.kind(rates, **options)


def method_of(kind: type[InnerOptimiser], **numbers: Any) -> Method | None:
    """None: an option is learned, or one that the ops do not have."""
    if any(type(x) not in (int, float, bool) for value in numbers.values() for x in _entries(value)):
        return None
    try:
        method = Method(kind, tuple(numbers.items()))
        method.optimiser(0.0)
    except (TypeError, ValueError):
        return None
    return method


def _entries(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple) else (value,)

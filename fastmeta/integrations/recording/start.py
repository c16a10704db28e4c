"""What a clone starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .known import Known
from .method import Method


class Start:
    """What clones start from: the parameters and rates, with copies of their values, which a later change leaves."""

    __slots__ = (
        "copies",
        "known",
        "method",
        "own",
        "params",
        "plain_leaves",
        "rates",
        "tensors",
        "used",
        "versions",
        "watched",
    )

    def __init__(self, known: Known, rates: Any, own: list[Tensor] | None = None, method: Method | None = None) -> None:
        """`own`: leaves in the place of the parameters. `method`: of the steps, None for theta - rate * gradient."""
        self.known, self.rates, self.own, self.method = known, rates, own is not None, method
        self.params: list[Any] = known.params if own is None else own
        of_rates = [r for r in (rates if isinstance(rates, list) else [rates]) if isinstance(r, Tensor)]
        self.tensors: list[Tensor] = [*self.params, *of_rates]
        self.versions = [p._version for p in self.tensors]
        self.copies = (
            [p.detach() for p in self.params] if own is not None else [p.detach().clone() for p in self.params]
        )
        self.copies += [r.detach().clone() for r in of_rates]
        self.watched = False  # whether values are compared too, for writes that no version counts
        self.used = False  # whether a gradient has gone back to them: they may have been changed since
        # Where processes train together, hooks that nobody sees wait for autograd to bring a gradient.
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.plain_leaves = not together and all(p.is_leaf for p in self.tensors)

    def same(self) -> bool:
        """Whether the tensors have the values that they had: one may have been written to behind the back of its version."""
        if self.used:
            self.used = not all(map(torch.equal, self.tensors, self.copies))
        return not self.used and self.fresh()

    def same_rates(self) -> bool:
        """Whether the rates have not been written to since."""
        count = len(self.params)
        return len(self.tensors) == count or [r._version for r in self.tensors[count:]] == self.versions[count:]

    def fresh(self) -> bool:
        """Whether the tensors have not been written to since."""
        same = [p._version for p in self.tensors] == self.versions
        return same and (not self.watched or all(map(torch.equal, self.tensors, self.copies)))


class Was(torch.autograd.Function):
    """`value`, which the tensor `now` had; its gradient goes to `now`."""

    @staticmethod
    def forward(ctx: Any, now: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        return gradient[0], None


def thetas_of(start: Start) -> tuple[list[Tensor], Any]:
    """The parameters as a clone has them at first, and the rates."""
    count, fresh = len(start.params), start.fresh()
    values = list(start.tensors)
    for i, (x, copy) in enumerate(zip(start.tensors, start.copies, strict=True)):
        if not x.requires_grad:
            values[i] = copy.clone()
        elif not (start.own and i < count):
            values[i] = x.clone() if fresh else Was.apply(x, copy)
    return values[:count], _with(start.rates, values[count:])


def _with(rates: Any, tensors: Sequence[Tensor]) -> Any:
    remaining = iter(tensors)
    each = [next(remaining) if isinstance(r, Tensor) else r for r in (rates if isinstance(rates, list) else [rates])]
    return each if isinstance(rates, list) else each[0]

"""Sums of losses that are not computed yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .gradients import AGAIN, backward, summed, together, value_of_sum
from .recorded import NOTHING, Recorded, new

SCALAR = torch.Size()


class Freed(torch.autograd.Function):
    """A value whose graph is gone."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, _: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(AGAIN)


def freed(value: Tensor) -> Tensor:
    found: Tensor = Freed.apply(value, torch.zeros((), requires_grad=True))
    return found


class Scalar(Recorded):
    """What can be added, scaled and differentiated."""

    __slots__ = ("freed", "held")
    freed: bool  # whether its gradient has been taken
    held: bool  # whether a sum has it
    shape = SCALAR
    dtype: torch.dtype

    def _sum(self, other: Any, sign: float = 1.0, own: float = 1.0) -> Any:
        if not _counts(other, self.dtype):
            return NotImplemented
        self.held = True
        if issubclass(type(other), Scalar):
            other.held = True
        return Total.of(((self, own), (other, sign)), self.dtype)

    def _times(self, count: float) -> Any:
        self.held = True
        return Total.of(((self, count),), self.dtype)

    def __add__(self, other: Any) -> Any:
        found = self._sum(other)
        return self.computed() + evaluate_all(other) if found is NotImplemented else found

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        found = self._sum(other, -1.0)
        return self.computed() - evaluate_all(other) if found is NotImplemented else found

    def __rsub__(self, other: Any) -> Any:
        found = self._sum(other, own=-1.0)
        return evaluate_all(other) - self.computed() if found is NotImplemented else found

    def __mul__(self, other: Any) -> Any:
        if type(other) in (int, float):
            return self._times(float(other))
        return self.computed() * evaluate_all(other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        if type(other) in (int, float) and other:
            return self._times(1.0 / other)
        return self.computed() / evaluate_all(other)

    def __neg__(self) -> Any:
        return self._times(-1.0)

    def __iadd__(self, other: Any) -> Any:
        return self._become(lambda x: x + other)

    def __isub__(self, other: Any) -> Any:
        return self._become(lambda x: x - other)

    def __imul__(self, other: Any) -> Any:
        return self._become(lambda x: x * other)

    def __itruediv__(self, other: Any) -> Any:
        return self._become(lambda x: x / other)

    def _become(self, of: Callable[[Any], Any]) -> Any:
        """The same object with the value of(self)."""
        raise NotImplementedError

    def item(self) -> float:
        found: float = self.evaluated().item()
        return found

    def detach(self) -> Any:
        self.held = True
        return Total.of(((self, 1.0),), self.dtype, graph=False)

    data = property(detach)

    def backward(
        self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False, inputs: Any = None
    ) -> None:
        if self.kept is not None or gradient is not None or retain_graph or create_graph or inputs is not None:
            self.computed().backward(gradient, retain_graph, create_graph, inputs)
        else:
            backward(self)


def evaluate_all(x: Any) -> Any:
    return x.computed() if issubclass(type(x), Recorded) else x


def _counts(x: Any, dtype: torch.dtype) -> bool:
    """Whether a sum with it stays recorded."""
    kind = type(x)
    if issubclass(kind, Scalar):
        return bool(x.dtype is dtype)
    return kind in (int, float) or (kind is Tensor and x.ndim == 0 and x.dtype is dtype)


class Total(Scalar):
    """sum_i count_i x_i of recorded scalars, tensors and numbers."""

    what = "total"
    terms: Any
    requires_grad: bool
    __slots__ = ("dtype", "requires_grad", "terms")

    @staticmethod
    def of(terms: Sequence[tuple[Any, float]], dtype: torch.dtype, graph: bool = True) -> Total:
        self = new(Total, NOTHING)
        self.kept = self.known = None
        self.freed = self.held = False
        self.terms, self.dtype, self.requires_grad = terms, dtype, graph
        return self

    def _become(self, of: Callable[[Any], Any]) -> Any:
        if self.kept is not None:
            self.kept = evaluate_all(of(self.kept))
            return self
        before = Total.of(self.terms, self.dtype, self.requires_grad)
        before.known, before.freed = self.known, self.freed
        found = of(before)
        if type(found) is Total:
            self.terms, self.requires_grad, self.known, self.freed = found.terms, True, None, False
        else:
            self.kept = evaluate_all(found)
        return self

    def leaves(self) -> list[tuple[Any, float, bool]]:
        """What it is the sum of in the end, each with its count and whether a gradient goes to it."""
        found: list[tuple[Any, float, bool]] = []
        rest: list[tuple[Any, float, bool]] = [(self, 1.0, True)]
        while rest:
            x, count, graph = rest.pop()
            if type(x) is Total and x.kept is None and (x is self or not x.freed):
                graph = graph and x.requires_grad
                rest.extend([(term, count * of, graph) for term, of in x.terms])
            else:
                found.append((x, count, graph))
        return found

    def _compute(self) -> Tensor:
        if self.freed:
            return freed(self.evaluated())
        return summed(self) if self.requires_grad else self.evaluated()

    def _evaluate(self) -> Tensor:
        return value_of_sum(self)


class Stack(Recorded):
    """Recorded scalars as one vector."""

    what = "stack"
    items: Any
    dtype: torch.dtype
    __slots__ = ("dtype", "items", "shape")

    @staticmethod
    def of(items: Sequence[Scalar]) -> Stack:
        self = new(Stack, NOTHING)
        self.kept = self.known = None
        self.items, self.shape, self.dtype = items, torch.Size([len(items)]), items[0].dtype
        return self

    def _compute(self) -> Tensor:
        return torch.stack(together(self.items))

    def _evaluate(self) -> Tensor:
        Total.of([(x, 1.0) for x in self.items], self.dtype).evaluated()
        return torch.stack([x.evaluated() for x in self.items])

    def sum(self, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or self.kept is not None:
            return self.computed().sum(*args, **kwargs)
        return Total.of([(x, 1.0) for x in self.items], self.dtype)

    def mean(self, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or self.kept is not None:
            return self.computed().mean(*args, **kwargs)
        return Total.of([(x, 1.0 / len(self.items)) for x in self.items], self.dtype)

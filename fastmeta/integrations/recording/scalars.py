"""Losses that are not computed yet, and sums of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import evaluate
from .recorded import HANDLERS, Outputs, Recorded
from .trace import FUNCTIONS, Trace

SCALAR = torch.Size()
AGAIN = (
    "Trying to backward through the graph a second time (or directly access saved tensors after they have already been freed). "
    "Saved intermediate values of the graph are freed when you call .backward() or autograd.grad(). Specify retain_graph=True if "
    "you need to backward through the graph a second time or if you need to access saved tensors after calling backward."
)  # torch's own words


class Freed(torch.autograd.Function):
    """A value whose graph is gone."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, _: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(AGAIN)


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
        return Total(((self, own), (other, sign)), self.dtype)

    def _times(self, count: float) -> Any:
        self.held = True
        return Total(((self, count),), self.dtype)

    def __add__(self, other: Any) -> Any:
        found = self._sum(other)
        return self.real() + evaluate_all(other) if found is NotImplemented else found

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        found = self._sum(other, -1.0)
        return self.real() - evaluate_all(other) if found is NotImplemented else found

    def __rsub__(self, other: Any) -> Any:
        found = self._sum(other, own=-1.0)
        return evaluate_all(other) - self.real() if found is NotImplemented else found

    def __mul__(self, other: Any) -> Any:
        if type(other) in (int, float):
            return self._times(float(other))
        return self.real() * evaluate_all(other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        if type(other) in (int, float) and other:
            return self._times(1.0 / other)
        return self.real() / evaluate_all(other)

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
        found: float = self.values().item()
        return found

    def detach(self) -> Any:
        self.held = True
        return Total(((self, 1.0),), self.dtype, graph=False)

    data = property(detach)

    def backward(
        self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False, inputs: Any = None
    ) -> None:
        if self.kept is not None or gradient is not None or retain_graph or create_graph or inputs is not None:
            self.real().backward(gradient, retain_graph, create_graph, inputs)
        else:
            backward(self)


def evaluate_all(x: Any) -> Any:
    return x.real() if issubclass(type(x), Recorded) else x


def _counts(x: Any, dtype: torch.dtype) -> bool:
    """Whether a sum with it stays recorded."""
    kind = type(x)
    if issubclass(kind, Scalar):
        return bool(x.dtype is dtype)
    return kind in (int, float) or (kind is Tensor and x.ndim == 0 and x.dtype is dtype)


class Loss(Scalar):
    """Of outputs and targets."""

    __slots__ = ("trace", "k", "key", "x", "y", "kind", "scale", "dtype", "outputs")

    def __init__(self, outputs: Outputs, y: Tensor, kind: str) -> None:
        self.kept = self.known = None
        self.freed = self.held = False
        trace = outputs.trace
        self.trace, self.k, self.x, self.y, self.kind = trace, outputs.k, outputs.x, trace.kept(y), kind
        self.scale, self.dtype = 1.0, y.dtype if kind == "mse" else outputs.x.dtype
        self.key = trace.key if len(trace.steps) == self.k else None
        self.outputs = weakref.ref(outputs)
        if outputs.losses is None:
            outputs.losses = [self]
        else:
            outputs.losses.append(self)

    @property
    def pending(self) -> bool:
        return self.kept is None and self.known is None

    def backward(
        self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False, inputs: Any = None
    ) -> None:
        plain = gradient is None and inputs is None and not retain_graph and not create_graph
        if not plain or self.kept is not None or self.freed or _back([self], [self.scale]):
            super().backward(gradient, retain_graph, create_graph, inputs)

    def of(self, outputs: Tensor) -> Tensor:
        """It, computed from the outputs."""
        found = FUNCTIONS[self.kind](outputs, self.y)
        return found if self.scale == 1.0 else found * self.scale

    def again(self) -> Tensor:
        """It, computed operation by operation."""
        with torch.enable_grad():
            return self.of(self.trace.outputs(self.k, self.x))

    def follow(self, outputs: Tensor) -> None:
        """The outputs are there: the loss is one of them."""
        if self.kept is None and not self.freed:
            self.kept = self.of(outputs)

    def take(self, found: Any, i: int) -> None:
        losses, outputs = found
        self.known = losses, i
        of = self.outputs()
        if outputs is not None and of is not None and of.known is None:
            of.known = outputs[i]

    def free(self) -> None:
        self.freed, self.trace, self.x, self.y = True, None, None, None

    def values(self) -> Tensor:
        found = super().values()
        return found if self.scale == 1.0 or self.kept is not None else found * self.scale

    def compute(self, of_outputs: bool) -> bool:
        """The value, and that of the outputs, in a native call; whether there was one."""
        if self.freed or not self.pending or self.trace.computed(self.k):
            return False
        with evaluate.in_grad_mode(), torch.no_grad():
            found = evaluate.values_of([self], of_outputs)
        if found is not None:
            self.take(found, 0)
        return found is not None

    def _real(self) -> Tensor:
        if self.freed:
            return Freed.apply(self.values(), torch.zeros((), requires_grad=True))
        outputs = self.outputs()
        if outputs is not None:
            real = outputs.real()
            return self.of(real) if self.kept is None else self.kept
        if not self.trace.is_asked():
            with evaluate.in_grad_mode():
                answer = evaluate.values_of([self], False)
            if answer is not None:
                self.trace.start.used = True
                return answer[0][0] * self.scale
        return self.again()

    def _values(self) -> Tensor:
        if self.compute(self.outputs() is not None):
            found: Tensor = self.known
            return found
        return self.again().detach() / self.scale

    def _become(self, of: Callable[[Any], Any]) -> Any:
        found = of(self) if self.pending and not self.held else None
        if type(found) is Total and len(found.terms) == 1:
            self.scale, self.held = self.scale * found.terms[0][1], False
        else:  # others have what it was
            self.kept = of(self.real())
        return self


class Total(Scalar):
    """sum_i count_i x_i of recorded scalars, tensors and numbers."""

    __slots__ = ("terms", "dtype", "requires_grad")

    def __init__(self, terms: Sequence[tuple[Any, float]], dtype: torch.dtype, graph: bool = True) -> None:
        self.kept = self.known = None
        self.freed = self.held = False
        self.terms, self.dtype, self.requires_grad = terms, dtype, graph

    def _become(self, of: Callable[[Any], Any]) -> Any:
        if self.kept is not None:
            self.kept = evaluate_all(of(self.kept))
            return self
        before = Total(self.terms, self.dtype, self.requires_grad)
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

    def _real(self) -> Tensor:
        if self.freed:
            return Freed.apply(self.values(), torch.zeros((), requires_grad=True))
        if not self.requires_grad:
            return self.values()
        total: Any = 0.0
        for x, count, graph in reversed(self.leaves()):
            value = evaluate_all(x) if graph else _value(x)
            total = total + (value if count == 1.0 else value * count)
        return total if isinstance(total, Tensor) else torch.tensor(total, dtype=self.dtype)

    def _values(self) -> Tensor:
        leaves = self.leaves()
        pending = {id(x): x for x, _, _ in leaves if type(x) is Loss and x.pending}
        for group in _groups(list(pending.values())):
            if len(group) > 1 and not any(x.trace.computed(x.k) for x in group):
                with evaluate.in_grad_mode(), torch.no_grad():
                    answer = evaluate.values_of(group, any(x.outputs() is not None for x in group))
                for i, x in enumerate(group if answer is not None else ()):
                    x.take(answer, i)
        return _summed([(_value(x), count) for x, count, _ in reversed(leaves)], self.dtype)


def _value(x: Any) -> Any:
    if issubclass(type(x), Recorded):
        return x.values()
    return x.detach() if isinstance(x, Tensor) else x


def _summed(pairs: Sequence[tuple[Any, float]], dtype: torch.dtype) -> Tensor:
    total: Any = 0.0
    for value, count in pairs:
        total = total + (float(value) * count)
    return torch.tensor(total, dtype=dtype)


def _groups(losses: Sequence[Loss]) -> list[list[Loss]]:
    """Those of one program."""
    found: dict[Any, list[Loss]] = {}
    for x in losses:
        key = (x.key, x.x.shape, x.y.shape, x.kind, id(x.trace.start)) if x.key is not None else id(x)
        found.setdefault(key, []).append(x)
    return list(found.values())


def backward(of: Scalar) -> None:
    """of.backward(): those of one program in one call."""
    if of.freed:
        raise RuntimeError(AGAIN)
    leaves = [(of, 1.0, True)] if type(of) is Loss else of.leaves()  # type: ignore[attr-defined]
    counts: dict[int, float] = {}
    losses: dict[int, Loss] = {}
    others: list[tuple[Any, float]] = []
    for x, count, graph in leaves:
        if not graph:
            continue
        if issubclass(type(x), Scalar) and x.freed:
            raise RuntimeError(AGAIN)
        if type(x) is Loss and x.kept is None:
            losses[id(x)] = x
            counts[id(x)] = counts.get(id(x), 0.0) + count
        elif isinstance(x, Tensor):
            real = evaluate_all(x)
            if real.requires_grad:
                others.append((real, count))
    groups = _groups(list(losses.values()))
    for group in groups:
        others += _back(group, [counts[id(x)] * x.scale for x in group])
    if len(groups) == 1 and len(leaves) == len(losses) and not others and type(of) is Total:
        (group,) = groups
        scales = torch.tensor([counts[id(x)] * x.scale for x in group], dtype=of.dtype)
        of.known, of.terms = (group[0].known[0], scales), ()
    if others:
        torch.autograd.backward([x for x, _ in others], [torch.full_like(x, count) for x, count in others])
    elif not losses:
        of.real().backward()
    of.freed = True


def _back(group: list[Loss], counts: list[float]) -> list[tuple[Tensor, float]]:
    """The gradient of a group; what is left to autograd."""
    with evaluate.in_grad_mode():
        answer = None
        if not any(x.trace.computed(x.k) for x in group):
            answer = evaluate.back(group, counts, any(x.outputs() is not None for x in group))
        if answer is None:
            return [(x.real(), count / x.scale) for x, count in zip(group, counts, strict=True)]
        group[0].trace.start.used = True
    for i, x in enumerate(group):
        x.take(answer, i)
        x.free()
    return []


def adapted(trace: Trace, loss: Any, first_order: bool) -> bool:
    """A step on a recorded loss of the parameters as they are; False: `loss` is something else."""
    scale = 1.0
    if type(loss) is Total and len(loss.terms) == 1 and loss.kept is None and loss.requires_grad and not loss.freed:
        loss, scale = loss.terms[0]
    if type(loss) is not Loss or loss.trace is not trace or loss.k != len(trace.steps) or loss.kept is not None:
        return False
    if loss.freed or trace.thetas is not None or not torch.is_grad_enabled():
        return False
    trace.step(loss.x, loss.y, loss.kind, bool(first_order), scale * loss.scale)
    return True


class Stack(Recorded):
    """Recorded scalars as one vector."""

    __slots__ = ("items", "shape")

    def __init__(self, items: Sequence[Scalar]) -> None:
        self.kept = self.known = None
        self.items, self.shape = items, torch.Size([len(items)])

    @property
    def dtype(self) -> torch.dtype:
        return self.items[0].dtype

    def _real(self) -> Tensor:
        return torch.stack([x.real() for x in self.items])

    def _values(self) -> Tensor:
        Total([(x, 1.0) for x in self.items], self.dtype).values()
        return torch.stack([x.values() for x in self.items])

    def sum(self, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or self.kept is not None:
            return self.real().sum(*args, **kwargs)
        return Total([(x, 1.0) for x in self.items], self.dtype)

    def mean(self, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or self.kept is not None:
            return self.real().mean(*args, **kwargs)
        return Total([(x, 1.0 / len(self.items)) for x in self.items], self.dtype)


def _stack(tensors: Any, dim: int = 0, **options: Any) -> Any:
    items = list(tensors)
    if dim or options or not torch.is_grad_enabled() or not all(issubclass(type(x), Scalar) for x in items):
        return NotImplemented
    return Stack(items) if all(x.dtype is items[0].dtype for x in items) else NotImplemented


def _added(a: Any, b: Any, *rest: Any, **options: Any) -> Any:
    if rest or options or not torch.is_grad_enabled():
        return NotImplemented
    recorded, other = (a, b) if issubclass(type(a), Scalar) else (b, a)
    return recorded._sum(other) if issubclass(type(recorded), Scalar) else NotImplemented


def _mse(x: Any, y: Any, size_average: Any = None, reduce: Any = None, reduction: str = "mean", weight: Any = None) -> Any:
    if size_average is not None or reduce is not None or reduction != "mean" or weight is not None:
        return NotImplemented
    right = _takes(x, y) and y.shape == x.shape and y.dtype is x.dtype
    return Loss(x, y, "mse") if right else NotImplemented


def _cross_entropy(
    x: Any, y: Any, weight: Any = None, size_average: Any = None, ignore_index: int = -100, reduce: Any = None,
    reduction: str = "mean", label_smoothing: float = 0.0,
) -> Any:  # fmt: skip
    plain = weight is None and size_average is None and reduce is None and reduction == "mean" and not label_smoothing
    right = plain and ignore_index == -100 and _takes(x, y) and y.dtype is torch.int64 and y.shape == x.shape[:1]
    return Loss(x, y, "cross_entropy") if right else NotImplemented


def _takes(x: Any, y: Any) -> bool:
    plain = type(x) is Outputs and x.kept is None and type(y) is Tensor and y.is_cpu and not y.is_inference()
    return plain and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


HANDLERS.update(
    {
        F.mse_loss: _mse, F.cross_entropy: _cross_entropy, torch.stack: _stack, torch.add: _added, Tensor.add: _added,
        Tensor.__add__: _added, Tensor.__radd__: _added,
        torch.sum: lambda x, *args, **kwargs: x.sum(*args, **kwargs) if type(x) is Stack else NotImplemented,
        torch.mean: lambda x, *args, **kwargs: x.mean(*args, **kwargs) if type(x) is Stack else NotImplemented,
    }
)  # fmt: skip

"""Parameters of clones and gradients to them that are not computed yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._torch import of_class
from .losses import adapted, step_on
from .recorded import NOTHING, Recorded, realised
from .report import note
from .trace import Trace


class Place(Recorded):
    """Parameter i of a clone after k steps. Its clone lives as long as it."""

    what = "parameter"
    __slots__ = ("clone", "dtype", "i", "k", "origin", "shape")
    clone: Any
    origin: Trace
    k: int
    i: int
    dtype: torch.dtype

    def _compute(self) -> Tensor:
        known = self.origin.start.known
        if self.origin.thetas is None:
            known.missed += 1
            note("replayed", known.name, "parameters were asked for")
        return self.origin.parameters(self.k)[self.i]


class Theta(Place):
    """The same, whose other attributes are those of the tensor."""

    __slots__ = ()
    OWN = frozenset((*Place.__slots__, *Recorded.__slots__))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.computed(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in Theta.OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.computed(), name, value)


def thetas_now(clone: Any, trace: Trace) -> list[Theta]:
    """The parameters of a clone as they are."""
    found = []
    for i, p in enumerate(trace.start.params):
        theta: Any = of_class(Place, NOTHING)
        theta.kept = theta.known = None
        theta.clone, theta.origin, theta.k, theta.i = clone, trace, len(trace.steps), i
        theta.shape, theta.dtype, theta.__class__ = p.shape, p.dtype, Theta
        found.append(theta)
    return found


class Gradients:
    """Of a recorded loss to all parameters of its clone."""

    def __init__(self, thetas: Sequence[Theta], loss: Any, create_graph: bool) -> None:
        self.thetas, self.loss, self.create_graph = list(thetas), loss, create_graph
        self.found: Sequence[Tensor] | None = None

    def __getitem__(self, i: int) -> Tensor:
        if self.found is None:
            thetas = [theta.computed() for theta in self.thetas]
            loss = self.loss.computed()
            self.found = torch.autograd.grad(loss, thetas, retain_graph=True, create_graph=self.create_graph)
        return self.found[i]


class Gradient(Recorded):
    """One of them, times a factor."""

    what = "gradient"
    __slots__ = ("dtype", "factor", "i", "of", "requires_grad", "shape")
    of: Gradients
    i: int
    factor: float
    dtype: torch.dtype
    requires_grad: bool

    @staticmethod
    def made(of: Gradients, i: int, factor: float = 1.0) -> Gradient:
        self: Gradient = of_class(Gradient, NOTHING)
        self.kept = self.known = None
        self.of, self.i, self.factor, self.requires_grad = of, i, factor, of.create_graph
        self.shape, self.dtype = of.thetas[i].shape, of.thetas[i].dtype
        return self

    def _compute(self) -> Tensor:
        found = self.of[self.i]
        return found if self.factor == 1.0 else found * self.factor

    def __mul__(self, other: Any) -> Any:
        if type(other) in (int, float) and self.kept is None:
            return Gradient.made(self.of, self.i, self.factor * other)
        return self.computed() * realised(other)

    __rmul__ = __mul__

    def __neg__(self) -> Any:
        return self * -1.0


def gradients_to_clone(loss: Any, inputs: Any, create_graph: bool) -> tuple[Gradient, ...] | None:
    """torch.autograd.grad(loss, parameters of a clone as they are), if it can wait."""
    if type(inputs) not in (tuple, list) or not inputs or type(inputs[0]) is not Theta:
        return None
    trace = inputs[0].origin
    k = len(trace.steps)
    right = len(inputs) == len(trace.start.params) and step_on(trace, loss) is not None
    for i, p in enumerate(inputs):
        right = right and type(p) is Theta and p.kept is None and p.origin is trace and p.k == k and p.i == i
    if not right:
        return None
    of = Gradients(inputs, loss, create_graph)
    return tuple(Gradient.made(of, i) for i in range(len(inputs)))


def updated(clone: Any, grads: Any, rate: Any) -> bool:
    """Whether a step of a clone by -rate times these gradients, or what is times them already, was recorded; else the clone now has
    parameters of its own."""
    trace = clone.__dict__.get("_trace")
    if trace is None:
        return False
    found = _of_one_loss(trace, grads) if type(rate) in (int, float) else None
    if found is not None:
        of, factor = found
        if adapted(trace, of.loss, not of.create_graph, float(rate * factor)):
            return True
    clone.compute("a step that is not theta - rate * gradient of a recorded loss")
    return False


def _of_one_loss(trace: Trace, grads: Any) -> tuple[Gradients, float] | None:
    """Whose gradients to all parameters of a clone these are, and the factor of all."""
    first = grads[0] if type(grads) in (tuple, list) and grads else None
    if type(first) is not Gradient or len(grads) != len(trace.start.params):
        return None
    of, factor = first.of, first.factor
    for i, g in enumerate(grads):
        if type(g) is not Gradient or g.kept is not None or g.i != i or g.of is not of or g.factor != factor:
            return None
    return (of, factor) if of.found is None and of.thetas[0].origin is trace else None

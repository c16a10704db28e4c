"""Losses of outputs and targets that are not computed yet, and steps on them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..._torch import of_class
from . import evaluate
from .gradients import back
from .recorded import NOTHING, Outputs
from .scalars import Scalar, Total, freed
from .trace import FUNCTIONS, Trace


class Loss(Scalar):
    """Of outputs and targets."""

    what = "loss"
    __slots__ = ("dtype", "k", "key", "kind", "origin", "outputs", "pairs", "read", "scale", "x", "y")

    origin: Any  # the trace
    k: int
    key: Any
    kind: str
    scale: float
    dtype: torch.dtype
    x: Any
    y: Any
    outputs: Any
    pairs: Any  # a leaf and its gradient each, where the value was needed before them
    read: Any  # a list to note a way back in, where the value was needed first

    @staticmethod
    def made(outputs: Outputs, y: Tensor, kind: str) -> Loss:
        self: Loss = of_class(Loss, NOTHING)
        self.kept = self.known = None
        self.freed = self.held = False
        self.pairs = self.read = None
        trace = outputs.origin
        self.origin, self.k, self.x, self.y, self.kind = trace, outputs.k, outputs.x, trace.kept(y), kind
        self.scale, self.dtype = 1.0, y.dtype if kind == "mse" else outputs.x.dtype
        self.key = trace.key if len(trace.steps) == self.k else None
        self.outputs = weakref.ref(outputs)
        if outputs.losses is None:
            outputs.losses = [self]
        else:
            outputs.losses.append(self)
        return self

    def leaves(self) -> list[tuple[Any, float, bool]]:
        return [(self, 1.0, True)]

    @property
    def pending(self) -> bool:
        return self.kept is None and self.known is None

    def backward(
        self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False, inputs: Any = None
    ) -> None:
        plain = gradient is None and inputs is None and not retain_graph and not create_graph
        if (
            not plain
            or self.kept is not None
            or self.freed
            or self.origin.asked
            or not self.origin.leads_back(self.k)
            or self.pairs is not None
            or back([self], [self.scale])
        ):
            super().backward(gradient, retain_graph, create_graph, inputs)

    def of(self, outputs: Tensor) -> Tensor:
        """It, computed from the outputs."""
        found = FUNCTIONS[self.kind](outputs, self.y)
        return found if self.scale == 1.0 else found * self.scale

    def again(self) -> Tensor:
        """It, computed operation by operation."""
        with torch.enable_grad():
            return self.of(self.origin.outputs(self.k, self.x))

    def follow(self, outputs: Tensor) -> None:
        """The outputs are there: the loss is one of them."""
        if self.kept is None and not self.freed:
            self.kept = self.of(outputs)

    def has_value(self, found: Any, i: int) -> None:
        losses, outputs = found
        self.known = losses, i
        of = self.outputs()
        if outputs is not None and of is not None and of.known is None:
            of.known = outputs[i]

    def free(self) -> None:
        start = self.origin.start
        start.used = True
        if self.read is not None:
            self.read[0] = True
            start.known.guess.taken += 1
            self.read = None
        self.freed, self.origin, self.x, self.y, self.pairs = True, None, None, None, None

    def evaluated(self) -> Tensor:
        found = super().evaluated()
        return found if self.scale == 1.0 or self.kept is not None else found * self.scale

    def compute(self, of_outputs: bool) -> bool:
        """The value, and that of the outputs, in a native call; whether there was one."""
        if self.freed or not self.pending or self.origin.asked:
            return False
        known = self.origin.start.known
        trains = torch.is_grad_enabled() and self.origin.tracked
        likely = False
        if trains:
            likely, self.read = known.guess.next()
        if likely:
            with evaluate.in_grad_mode():
                answer = evaluate.with_gradients([self], [1.0], of_outputs)
            if answer is not None:
                (losses, outputs), pairs, _ = answer
                self.has_value((losses.detach(), outputs), 0)
                self.pairs = None if pairs is None else list(pairs)
            return answer is not None
        with evaluate.in_grad_mode(), torch.no_grad():
            found = evaluate.values_of([self], of_outputs)
        if found is not None:
            self.has_value(found, 0)
        return found is not None

    def _compute(self) -> Tensor:
        if self.freed:
            return freed(self.evaluated())
        outputs = self.outputs()
        if outputs is not None:
            real = outputs.computed()
            return self.of(real) if self.kept is None else self.kept
        if not self.origin.is_asked() and self.origin.leads_back(self.k):
            with evaluate.in_grad_mode():
                answer = evaluate.values_of([self], False)
            if answer is not None:
                self.origin.start.used = True
                return answer[0][0] * self.scale
        return self.again()

    def _evaluate(self) -> Tensor:
        if self.compute(self.outputs() is not None):
            found: Tensor = self.known
            return found
        return self.again().detach() / self.scale

    def _become(self, of: Callable[[Any], Any]) -> Any:
        found = of(self) if self.pending and not self.held else None
        if type(found) is Total and len(found.terms) == 1:
            self.scale, self.held = self.scale * found.terms[0][1], False
        else:  # others have what it was
            self.kept = of(self.computed())
        return self


def step_on(trace: Trace, loss: Any) -> tuple[Loss, float] | None:
    """A recorded loss of the parameters as they are, and what it counts, for a step; None: `loss` is something else."""
    scale = 1.0
    if type(loss) is Total and len(loss.terms) == 1 and loss.kept is None and loss.requires_grad and not loss.freed:
        loss, scale = loss.terms[0]
    if type(loss) is not Loss or loss.origin is not trace or loss.k != len(trace.steps) or loss.kept is not None:
        return None
    if loss.freed or trace.thetas is not None or not torch.is_grad_enabled() or not trace.start.same_rates():
        return None
    return loss, scale * loss.scale


def adapted(trace: Trace, loss: Any, first_order: bool, rate: float = 1.0) -> bool:
    """Whether a step on a loss was recorded, at `rate` times the rates."""
    found = step_on(trace, loss)
    if found is not None:
        of, scale = found
        trace.step(of.x, of.y, of.kind, bool(first_order), scale * rate)
    return found is not None

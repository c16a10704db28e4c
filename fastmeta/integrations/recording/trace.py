"""What one clone of a model has done since it was made, and how the same is done operation by operation."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..._torch import is_plain
from .._steps import copy_of, stepped
from .method import Stepper
from .start import Start, thetas_of
from .statistics import Calls, noting

FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "cross_entropy": F.cross_entropy,
    "nll_loss": F.nll_loss,
}
NO_GRAD = "grad mode is off"
Step = tuple[Tensor, Tensor, str, bool, float]  # inputs, targets, loss, first order, what the loss counts


class Trace:
    """`steps` from `start`: by `stepper`, or theta_{k+1} = theta_k - rate * gradient of the loss of step k."""

    __slots__ = (
        "buffers",
        "calls",
        "clone",
        "inputs",
        "key",
        "latest",
        "rates",
        "shape",
        "start",
        "stepper",
        "steps",
        "thetas",
        "tracked",
    )

    def __init__(self, start: Start, tracked: bool, stepper: Stepper | None = None) -> None:
        self.start, self.key, self.tracked, self.stepper = start, 0, tracked, stepper
        self.steps: list[Step] = []
        self.inputs: list[tuple[Tensor, int, Tensor, int]] = []  # the tensor, its version, a copy, where it lies
        self.latest: Tensor | None = None  # the inputs of the last outputs, and their shape
        self.shape: Any = None
        self.clone: Any = None  # a weak reference to who may ask for parameters
        # Where batch norm keeps statistics: the calls, and the buffers at first where they are the clone's own.
        self.buffers: list[Tensor] = []
        self.calls: Calls | None = None
        self.thetas: list[list[Tensor]] | None = None  # of the steps, once somebody has asked
        self.rates: Any = None

    def kept(self, x: Tensor) -> Tensor:
        """A copy: whatever is written to `x` later does not count. Of the same tensor, or another view of it, the same copy."""
        version, place = x._version, x.data_ptr()
        for known, at, copy, where in self.inputs:
            if where == place and at == version and (known is x or _same_view(known, x)):
                return copy
        if x.requires_grad:
            with torch.enable_grad():  # in any mode: it may serve in another
                copy = x.clone()
        else:
            copy = x.clone()
        self.inputs.append((x, version, copy, place))
        return copy

    def why_not(self, x: Any) -> str:
        """Why the outputs for `x` are computed at once, or "" if they need not be."""
        known = self.start.known
        if any(known.seen.empty):
            return "a hook was added"
        if not is_plain() or torch.is_autocast_enabled("cpu") or torch.is_inference_mode_enabled():
            return "a transform, a mode or autocast is active"
        if x is self.latest:
            return "" if torch.is_grad_enabled() else NO_GRAD
        if type(x) is not Tensor or x.dtype is not known.dtype or not x.is_cpu or x.is_inference():
            return "inputs are not a plain tensor of the parameters' dtype on a CPU"
        self.shape = known.output_shape(x.shape)
        if self.shape is None:
            return "inputs of another shape"
        self.latest = x
        return "" if torch.is_grad_enabled() else NO_GRAD

    def step(self, x: Tensor, y: Tensor, loss: str, first_order: bool, scale: float) -> None:
        steps, known = self.steps, self.start.known
        if steps:
            last = steps[-1]
            if last[0] is x and last[1] is y and last[2:] == (loss, first_order, scale):
                steps.append(last)
                self.key = known.key(self.key)
                return
        steps.append((x, y, loss, first_order, scale))
        self.key = known.key(self.key, x.shape, y.shape, loss, first_order, scale)

    @property
    def asked(self) -> bool:
        """Whether somebody has parameters: gradients may go to them."""
        return self.thetas is not None

    def leads_back(self, k: int) -> bool:
        """Whether gradients go from theta_k to the start."""
        return self.tracked or k == 0

    def is_asked(self) -> bool:
        """Whether somebody has the parameters, or may still ask for them."""
        return self.thetas is not None or (self.clone is not None and self.clone() is not None)

    def parameters(self, k: int) -> list[Tensor]:
        """theta_k, computed step by step."""
        with torch.enable_grad():
            if self.thetas is None:
                self.start.used = True
                theta, self.rates = thetas_of(self.start)
                self.thetas = [theta]
            while len(self.thetas) <= k:
                at = len(self.thetas) - 1
                x, y, loss, first_order, scale = self.steps[at]
                theta = self.thetas[at]
                value = FUNCTIONS[loss](self.outputs(at, x), y) * scale
                grads = torch.autograd.grad(value, theta, create_graph=self.tracked and not first_order)
                after = (self.stepper or stepped)(theta, grads, self.rates)
                self.thetas.append(after if self.tracked else [p.detach().requires_grad_() for p in after])
        return self.thetas[k]

    def outputs(self, k: int, x: Tensor) -> Tensor:
        """f(theta_k, x), computed operation by operation."""
        known = self.start.known
        theta = self.parameters(k)
        values = {name: theta[known.places[id(p)]] for name, p in known.alone.named_parameters()}
        with torch.enable_grad(), nullcontext() if self.calls is None else noting(self, k, x):
            found: Tensor = functional_call(known.alone, values, (x,), tie_weights=False)
        return found

    def module(self) -> nn.Module:
        """The model with the parameters after all steps."""
        known = self.start.known
        theta = self.parameters(len(self.steps))
        model = known.model if known.holds(known.model) else known.template
        return copy_of(model, lambda p: theta[known.places[id(p)]], lambda b: b.clone() if b.requires_grad else b)


def _same_view(a: Tensor, b: Tensor) -> bool:
    same = a.shape == b.shape and a.dtype is b.dtype and a.stride() == b.stride()
    return same and not a.requires_grad and not b.requires_grad


def refer(trace: Trace, clone: Any) -> None:
    trace.clone = weakref.ref(clone)

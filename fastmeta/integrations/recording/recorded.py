"""What stands for tensors that are not computed yet: outputs of a clone, losses of them, and sums of losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..._torch import of_class
from . import evaluate
from .report import note
from .trace import Trace

# What needs no graph of its arguments.
VALUES = frozenset(
    ("argmax", "argmin", "argsort", "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isfinite", "isinf", "item", "tolist", "numpy",
     "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__float__", "__int__", "__bool__", "__array__", "__repr__", "__str__",
     "__format__", "__len__", "__index__", "__complex__", "equal", "allclose", "isclose", "detach", "data", "bincount", "is_nonzero")
)  # fmt: skip
BACK = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)  # which need the graph in any mode
HANDLERS: dict[Any, Callable[..., Any]] = {}
NOTHING = torch.empty((), device="meta")  # has no memory: who goes past __torch_function__ meets an error


class Recorded(Tensor):
    """A tensor in all but memory. `computed`: the tensor with its graph; `evaluated`: without. An operation that is not recorded runs on
    these, so every other thing than a few functions finds a tensor."""

    __slots__ = ("kept", "known")
    what = "outputs"
    shape: Any
    kept: Tensor | None  # the tensor, once somebody has it
    known: Any  # its values, once computed
    requires_grad, is_leaf, is_cpu, is_cuda, is_meta, is_sparse, layout = (
        True,
        False,
        True,
        False,
        False,
        False,
        torch.strided,
    )
    device = torch.device("cpu")

    def computed(self) -> Tensor:
        if self.kept is None:
            with torch.enable_grad():
                self.kept = self._compute()
        return self.kept

    def evaluated(self) -> Tensor:
        if self.kept is not None:
            return self.kept.detach()
        if self.known is None:
            self.known = self._evaluate()
        if type(self.known) is not tuple:
            found: Tensor = self.known
            return found
        values, place = self.known
        return values[place] if type(place) is int else torch.dot(values, place)

    def _compute(self) -> Tensor:
        raise NotImplementedError

    def _evaluate(self) -> Tensor:
        return self.computed().detach()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = HANDLERS.get(func)
        if handler is not None:
            found = handler(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        graph = func in BACK or (torch.is_grad_enabled() and getattr(func, "__name__", "") not in VALUES)
        args, kwargs = realised((args, kwargs or {}), graph)
        return func(*args, **kwargs)

    def dim(self) -> int:
        return len(self.shape)

    @property
    def ndim(self) -> int:  # type: ignore[override]
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        found: int = self.shape.numel()
        return found

    def cpu(self) -> Any:  # type: ignore[override]
        return self

    def is_floating_point(self) -> bool:
        return True


def realised(tree: Any, graph: bool = True) -> Any:
    """`tree` with tensors in the place of recorded ones."""
    kind = type(tree)
    if kind in (tuple, list):
        return kind(realised(item, graph) for item in tree)
    if kind is dict:
        return {name: realised(item, graph) for name, item in tree.items()}
    return (tree.computed() if graph else tree.evaluated()) if issubclass(kind, Recorded) else tree


class Outputs(Recorded):
    """f(theta_k, x)."""

    __slots__ = ("dtype", "k", "losses", "origin", "shape", "x")

    losses: Any
    origin: Trace
    k: int
    x: Tensor
    dtype: torch.dtype

    @staticmethod
    def of(trace: Trace, x: Tensor, shape: Any) -> Outputs:
        self: Outputs = of_class(Outputs, NOTHING)
        self.kept = self.known = self.losses = None
        self.origin, self.k, self.x = trace, len(trace.steps), trace.kept(x)
        self.shape, self.dtype = shape, x.dtype
        if trace.calls is not None:
            trace.calls.add(trace, self.k, self.x)
        return self

    def _compute(self) -> Tensor:
        known = self.origin.start.known
        known.missed += 1
        note("replayed", known.name, "an operation on outputs is not recorded")
        found = self.origin.outputs(self.k, self.x)
        for loss in self.losses or ():
            loss.follow(found)
        return found

    def _evaluate(self) -> Tensor:
        for loss in self.losses or ():
            if loss.compute(True):
                found: Tensor = self.known
                return found
        outputs = None if self.origin.asked else evaluate.outputs_of(self.origin, self.k, self.x)
        return self.origin.outputs(self.k, self.x).detach() if outputs is None else outputs

"""What stands for tensors that are not computed yet: outputs of a clone, losses of them, and sums of losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import evaluate
from .report import note
from .trace import Trace

# What needs no graph of its arguments.
VALUES = frozenset(
    ("argmax", "argmin", "argsort", "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isfinite", "isinf", "item", "tolist", "numpy",
     "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__float__", "__int__", "__bool__", "__array__", "__repr__", "__str__",
     "__format__", "__len__", "__index__", "__complex__", "equal", "allclose", "isclose", "detach", "data", "bincount", "is_nonzero")
)  # fmt: skip
HANDLERS: dict[Any, Callable[..., Any]] = {}


class Recorded:
    """A tensor in all but memory. `real`: the tensor with its graph; `values`: without. An operation that is not recorded runs on
    these, so every other thing than a few functions finds a tensor."""

    __slots__ = ("kept", "known", "__dict__", "__weakref__")
    kept: Tensor | None  # the tensor, once somebody has it
    known: Any  # its values, once computed

    requires_grad, is_leaf, is_cpu, is_cuda, is_sparse, grad, layout = True, False, True, False, False, None, torch.strided
    device = torch.device("cpu")
    _is_view = is_complex = staticmethod(lambda: False)
    is_floating_point = staticmethod(lambda: True)

    @property
    def __class__(self) -> type:
        return Tensor

    @__class__.setter
    def __class__(self, _: type) -> None:
        raise TypeError("the class of a recorded tensor must stay")

    def real(self) -> Tensor:
        if self.kept is None:
            self.kept = self._real()
        return self.kept

    def values(self) -> Tensor:
        if self.kept is not None:
            return self.kept.detach()
        if self.known is None:
            self.known = self._values()
        if type(self.known) is not tuple:
            found: Tensor = self.known
            return found
        values, place = self.known
        return values[place] if type(place) is int else torch.dot(values, place)

    def _real(self) -> Tensor:
        raise NotImplementedError

    def _values(self) -> Tensor:
        raise NotImplementedError

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = HANDLERS.get(func)
        if handler is not None:
            found = handler(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        graph = torch.is_grad_enabled() and getattr(func, "__name__", "") not in VALUES
        args, kwargs = realised((args, kwargs or {}), graph)
        return func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.values() if name in VALUES else self.real(), name)

    def __hash__(self) -> int:
        return id(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.real().__reduce_ex__(protocol)

    def __dir__(self) -> list[str]:
        return dir(Tensor)

    def dim(self) -> int:
        return len(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        return self.shape.numel()

    def cpu(self) -> Any:
        return self

    def __len__(self) -> int:
        return len(self.values())


def realised(tree: Any, graph: bool = True) -> Any:
    """`tree` with tensors in the place of recorded ones."""
    kind = type(tree)
    if kind in (tuple, list):
        return kind(realised(item, graph) for item in tree)
    if kind is dict:
        return {name: realised(item, graph) for name, item in tree.items()}
    return (tree.real() if graph else tree.values()) if issubclass(kind, Recorded) else tree


def _delegated(name: str) -> Callable[..., Any]:
    if name in VALUES:
        return lambda self, *args: getattr(self.values(), name)(*realised(args, False))
    return lambda self, *args: getattr(self.real(), name)(*realised(args))


for _name in (
    "add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "rtruediv", "itruediv", "pow", "rpow", "matmul",
    "rmatmul", "floordiv", "mod", "neg", "pos", "abs", "invert", "and", "or", "xor", "eq", "ne", "lt", "le", "gt", "ge", "float",
    "int", "bool", "index", "complex", "array", "repr", "str", "format", "getitem", "setitem", "iter", "contains", "deepcopy",
):  # fmt: skip
    setattr(Recorded, f"__{_name}__", _delegated(f"__{_name}__"))


class Outputs(Recorded):
    """f(theta_k, x)."""

    __slots__ = ("trace", "k", "x", "shape", "losses")

    def __init__(self, trace: Trace, x: Tensor, shape: Any) -> None:
        self.kept = self.known = self.losses = None
        self.trace, self.k, self.x, self.shape = trace, len(trace.steps), trace.kept(x), shape

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    def _real(self) -> Tensor:
        note("replayed", self.trace.start.known.name, "an operation on outputs is not recorded")
        found = self.trace.outputs(self.k, self.x)
        for loss in self.losses or ():
            loss.follow(found)
        return found

    def _values(self) -> Tensor:
        for loss in self.losses or ():
            if loss.compute(True):
                found: Tensor = self.known
                return found
        outputs = None if self.trace.computed(self.k) else evaluate.outputs_of(self.trace, self.k, self.x)
        return self.trace.outputs(self.k, self.x).detach() if outputs is None else outputs

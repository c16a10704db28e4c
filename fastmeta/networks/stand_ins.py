"""What a user's forward meets while a `Program` runs it: stand-ins for tensors, for `self` and for modules of Python. They answer what
is known to be the same in every call and refuse all else."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from torch import Tensor, nn

from .._torch import CHILDREN
from .functions import METHODS


class Unknown(Exception):
    """What may be another in another call, or is not known."""


def refuse(*_: Any, **__: Any) -> Any:
    raise Unknown


class StandIn:
    __slots__ = ("held",)

    def __init__(self, *held: Any) -> None:
        object.__setattr__(self, "held", held)

    __getattribute__ = __setattr__ = __delattr__ = __call__ = refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = refuse
    __bool__ = __len__ = __iter__ = __contains__ = __getitem__ = __setitem__ = refuse
    __int__ = __float__ = __index__ = __str__ = __repr__ = __format__ = refuse


def held(x: StandIn) -> Any:
    return object.__getattribute__(x, "held")


class Value(StandIn):
    """A tensor: (program, the step that gives it, -1 for the input, its storage, how often that had been written to then, whether its
    rows are the examples)."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        program = held(self)[0]
        if name == "shape":
            return Sizes(self)
        if name == "size":
            return Called(lambda dim=None: Sizes(self) if dim is None else program.apply(Tensor.size, self, dim))
        return Called(partial(program.apply, METHODS[name], self)) if name in METHODS else refuse()

    def __add__(self, other: Any) -> Any:
        return held(self)[0].apply(Tensor.add, self, other)

    def __iadd__(self, other: Any) -> Any:
        return held(self)[0].apply(Tensor.add_, self, other)


class Sizes(StandIn):
    """(value)."""

    __slots__ = ()

    def __getitem__(self, dim: Any) -> Any:
        (value,) = held(self)
        return held(value)[0].apply(Tensor.size, value, dim)


class Namespace(StandIn):
    """A module of Python: (program, it)."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        program, module = held(self)
        return program.named(vars(module), name)


class Called(StandIn):
    """A function: (it)."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return held(self)[0](*args, **kwargs)

    def __bool__(self) -> bool:
        return True


class Base(StandIn):
    """A class of modules, for `super`: (it)."""

    __slots__ = ()


class Inherited(StandIn):
    """What `super` gives: (the stand-in of a module, the class after which it looks)."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        of, base = held(self)
        program, module = held(of)
        return program.inherited(base, module, name)


def inherited(*given: Any) -> Inherited:
    """super(base, of); without these, of the method that calls it."""
    frame = sys._getframe(1)
    base, of = given or (frame.f_locals["__class__"], frame.f_locals[frame.f_code.co_varnames[0]])
    if type(base) is not Base or type(of) is not Self:
        raise Unknown
    return Inherited(of, *held(base))


class Self(StandIn):
    """A module of torch: (program, it)."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        program, module = held(self)
        return program.attribute(module, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        program, module = held(self)
        return program.call(module, args, kwargs)

    def __iter__(self) -> Any:
        return iter(children(self))

    def __len__(self) -> int:
        return len(children(self))

    def __getitem__(self, place: Any) -> Any:
        return children(self)[place] if type(place) is int else refuse()

    def __bool__(self) -> bool:
        kind = type(held(self)[1])
        plain = not hasattr(kind, "__len__") and not hasattr(kind, "__bool__")
        return plain or len(children(self)) > 0


def children(of: Self) -> list[Self]:
    """Those of a Sequential or a ModuleList."""
    program, module = held(of)
    kind = type(module)
    for plain in (nn.Sequential, nn.ModuleList):
        if all(getattr(kind, name, None) is getattr(plain, name) for name in ("__iter__", "__len__", "__getitem__")):
            return [Self(program, child) for child in getattr(module, CHILDREN).values()]
    found: list[Self] = refuse()
    return found

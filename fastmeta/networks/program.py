"""What a module computes: its `forward`, and those of all below, run once with stand-ins for tensors, for `self` and for what they name.

Users' code meets nothing of the user's here: it gets a copy of its function with other globals, in which only torch's known functions,
numbers, words and other such functions have their names. So it can change nothing, and draws no random number. What it reads of modules,
classes and globals is noted: `reads`, pairs of how to read it again and what was there. A tensor has no value and no size here but those
that a `view` needs: a branch on one ends the run. What no such run can vouch for has no program.
"""

from __future__ import annotations

import builtins
import contextlib
import dis
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn

from .._torch import BUFFERS, CHILDREN, GLOBAL_HOOKS, HOOKS, PARAMETERS
from .functions import ADDS, FUNCTIONS, IN_PLACE, LAYER_OF, Sine
from .stand_ins import Base, Called, Namespace, Self, Unknown, Value, held, inherited
from .users_model import FORWARD

NAMES = ("abs", "bool", "enumerate", "float", "int", "len", "list", "max", "min", "range", "reversed", "tuple", "zip")
BUILTINS = {name: getattr(builtins, name) for name in NAMES}
SPACES = (torch, torch.nn, torch.nn.functional)
PLAIN = (type(None), bool, int, float, str)
CALLS = ("__call__", "_call_impl", "__getattr__", "__getattribute__")
# Handlers could hide what is refused here; what is stored is lost here.
REFUSED = {"PUSH_EXC_INFO", "SETUP_FINALLY", "STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR"}
# Their outputs have memory of their own, unless they are told to work in place; their rows are their inputs' rows.
MAPS = (
    nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.LogSoftmax,
    nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.MaxPool2d, nn.Linear,
    nn.SiLU, Sine, nn.AdaptiveAvgPool2d,
)  # fmt: skip
ALIASES = (nn.Identity, nn.Dropout, nn.Dropout2d)  # whose rows are their inputs' too
Read = tuple[Callable[[Any], Any], Any, Any]  # how, of what name, what was there


class Step(NamedTuple):
    call: Any  # a module or a function
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    layer: nn.Module | None  # what a known layer would do in its place


class Program:
    """`steps`, and which of them gives the outputs, `end`; None: it has none."""

    def __init__(self, module: nn.Module) -> None:
        self.steps: list[Step] = []
        self.reads: list[Read] = []
        self.end: int | None = None
        self._written = [0]  # how often each storage was, the input's first
        self._noted: set[tuple[int, Any]] = set()
        self._functions: dict[Any, Any] = {}
        try:
            found = self.call(module, (Value(self, -1, 0, 0, True),), {})
            self.end = self._place(found)
        except Exception:  # whatever it is, the module itself will tell
            pass
        del self._functions

    def call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kind, own = type(module), module.__dict__
        if any(GLOBAL_HOOKS) or any(getattr(module, hooks) for hooks in HOOKS):
            raise Unknown
        if any(name in own for name in ("forward", "_call_impl")) or own.get("_compiled_call_impl") is not None:
            raise Unknown
        plain = [getattr(nn.Module, name, None) for name in CALLS]
        if [getattr(kind, name, None) for name in CALLS] != plain:
            raise Unknown
        forward: Any = kind.forward
        if forward is FORWARD[nn.Sequential]:
            return self._one_after_the_other(module, *args)
        if _is_torchs(kind) and not getattr(module, CHILDREN):
            return self.apply(module, *args, **kwargs)
        return self._method(kind, "forward")(Self(self, module), *args, **kwargs)

    def _one_after_the_other(self, module: nn.Module, x: Any) -> Any:
        if type(module).__iter__ is not nn.Sequential.__iter__:  # type: ignore[attr-defined]
            raise Unknown
        for child in getattr(module, CHILDREN).values():
            x = self.call(child, (x,), {})
        return x

    def apply(self, call: Any, *args: Any, **kwargs: Any) -> Value:
        """A step more."""
        found = [*values_in((args, kwargs))]
        if not args or type(args[0]) is not Value or (call in ADDS and (len(found) != 2 or len(args) != 2 or kwargs)):
            raise Unknown
        for value in found:
            self._place(value)
        layer = call if isinstance(call, nn.Module) else None
        if call in LAYER_OF and len(found) == 1:
            layer = LAYER_OF[call](*args, **kwargs)
        _, _, storage, _, rows = held(args[0])
        if call in IN_PLACE or self._option(layer, "inplace"):
            if storage == 0:
                raise Unknown  # it writes to the images
            self._written[storage] += 1
        elif type(layer) in MAPS or call in ADDS:
            self._written.append(0)
            storage = len(self._written) - 1
        whole = type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)
        keeps = whole or type(layer) in (*MAPS, *ALIASES) or call in ADDS
        rows = keeps and all(held(value)[4] for value in found)
        self.steps.append(Step(call, args, kwargs, layer))
        return Value(self, len(self.steps) - 1, storage, self._written[storage], rows)

    def attribute(self, module: nn.Module, name: str) -> Any:
        """What `self.name` is."""
        kind, own = type(module), module.__dict__
        of_class = next((vars(c) for c in kind.__mro__ if name in vars(c)), None)
        if of_class is not None and hasattr(type(of_class[name]), "__set__"):
            raise Unknown  # a property
        if name in own:
            return self.named(own, name)
        self._note(own.__contains__, name, (id(own), name, None))
        if of_class is not None:
            return self._method(kind, name, Self(self, module))
        if name in getattr(module, PARAMETERS) or name in getattr(module, BUFFERS):
            raise Unknown
        child = getattr(module, CHILDREN)[name]
        return child if child is None else Self(self, child)

    def named(self, space: Any, name: str) -> Any:
        """The sound stand-in for space[name]."""
        value = space[name]
        if _is_plain(value):
            found = value
        elif any(value is known for known in SPACES):
            found = Namespace(self, value)
        elif isinstance(value, FunctionType | BuiltinFunctionType) and value in FUNCTIONS:
            found = Called(partial(self.apply, value))
        elif isinstance(value, type) and issubclass(value, nn.Module):
            found = Base(value)
        elif type(value) is FunctionType and not _is_torchs(value):
            found = Called(lambda *args, **kwargs: self._function(value)(*args, **kwargs))
        else:
            raise Unknown
        self._note(space.get, name, (id(space), name))
        return found

    def inherited(self, base: type, module: nn.Module, name: str) -> Any:
        """What `super(base, module).name` is."""
        mro = type(module).__mro__
        after = mro[mro.index(base) + 1 :]
        found = next((c for c in after if name in vars(c)), None)
        if found is nn.Sequential and name == "forward" and nn.Sequential.forward is FORWARD[nn.Sequential]:
            for c in after[: after.index(found)]:
                self._note(vars(c).__contains__, name, (id(c), name, None))
            return Called(partial(self._one_after_the_other, module))
        return self._of_classes(after, name, Self(self, module))

    def _method(self, kind: type, name: str, of: Self | None = None) -> Any:
        """What the class has, bound to `of`."""
        return self._of_classes(kind.__mro__, name, of)

    def _of_classes(self, classes: Sequence[type], name: str, of: Self | None) -> Any:
        for c in classes:
            if _is_torchs(c) or c is object:
                raise Unknown
            if name in vars(c):
                found = self.named(vars(c), name)
                if type(vars(c)[name]) is not FunctionType or of is None:
                    return found
                return Called(partial(found, of))
            self._note(vars(c).__contains__, name, (id(c), name, None))
        raise Unknown

    def _function(self, function: FunctionType) -> Any:
        """The same code with other globals."""
        if function in self._functions:
            return self._functions[function]
        code, defaults = function.__code__, (function.__defaults__ or (), *(function.__kwdefaults__ or {}).values())
        cells = function.__closure__ or ()
        if code.co_freevars not in ((), ("__class__",)) or not _is_plain(defaults):  # which `super` asks for
            raise Unknown
        own = function.__globals__
        scope: dict[str, Any] = {"__builtins__": {name: known for name, known in BUILTINS.items() if name not in own}}
        if "super" not in own:
            scope["__builtins__"]["super"] = inherited
        closure = tuple(CellType(Base(cell.cell_contents)) for cell in cells)
        made = FunctionType(code, scope, function.__name__, function.__defaults__, closure)
        made.__kwdefaults__ = function.__kwdefaults__
        self._functions[function] = made
        for part in _parts(code):
            _refuse_code(part)
            for name in part.co_names:
                if name in own:
                    with contextlib.suppress(Unknown):
                        scope[name] = self.named(own, name)
                elif name in BUILTINS or name == "super":
                    self._note(own.__contains__, name, (id(own), name, None))
        for cell in cells:
            self._note(cell.__getattribute__, "cell_contents", (id(cell), "cell_contents"))
        for part_of in ("__code__", "__defaults__", "__kwdefaults__"):
            self._note(function.__getattribute__, part_of, (id(function), part_of))
        return made

    def _option(self, layer: nn.Module | None, name: str) -> bool:
        own = {} if layer is None else layer.__dict__
        if name in own:
            self._note(own.get, name, (id(own), name))
        return bool(own.get(name))

    def _note(self, how: Callable[[Any], Any], name: str, key: tuple[Any, ...]) -> None:
        if key not in self._noted:
            self._noted.add(key)
            self.reads.append((how, name, how(name)))

    def _place(self, value: Value) -> int:
        """The step that gives it; Unknown where it was written to since."""
        if type(value) is not Value:
            raise Unknown
        _, place, storage, written, _ = held(value)
        if self._written[storage] != written:
            raise Unknown
        return int(place)


def _refuse_code(code: CodeType) -> None:
    """What may do one thing in this run and another in the next: identity too, but to constants."""
    before = ""
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if name in REFUSED or (name == "IS_OP" and not before.startswith("LOAD_CONST")):
            raise Unknown
        before = name


def place_of(value: Value) -> int:
    return int(held(value)[1])


def has_rows(value: Value) -> bool:
    """Whether its rows are the examples."""
    return bool(held(value)[4])


def values_in(x: Any) -> Iterator[Value]:
    if type(x) is Value:
        yield x
    elif type(x) is dict:
        yield from values_in(tuple(x.values()))
    elif type(x) in (tuple, list):
        for item in x:
            yield from values_in(item)
    elif not _is_plain(x):
        raise Unknown


def _is_plain(x: Any) -> bool:
    return type(x) in PLAIN or (type(x) is tuple and all(map(_is_plain, x)))


def _is_torchs(x: Any) -> bool:
    return str(getattr(x, "__module__", "")).split(".")[0] == "torch"


def _parts(code: CodeType) -> Iterator[CodeType]:
    """It, and the comprehensions and functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)

"""Repeats a call of Triton kernels without the Python between the kernels.

What such a call allocates and launches depends on what its tensors look like, never on their values. So the second call with
tensors that look alike is recorded, every operation of torch and every launch with its compiled kernel, as a function that later calls
run. Of proto_loss it is about

    def replay(flat, pointers, stream):
        t0,t1,t2,t3, = flat
        p0,p1,p2,p3, = pointers
        x0 = empty_strided((32,), (1,), dtype=float32, device=cuda)
        run(320, 1, 1, stream, function, metadata, None, None, None, p0, p1, p2, None, p3, x0.data_ptr(), 75, 5, 64)
        return ((x0, ), (), )

Pointers, numbers and the stream are those of each call; all else is in the key, or asked for anew (`guards`). What cannot be recorded runs
as ever, and so does all where somebody looks on: hooks of Triton, its debugger or instrumentation, a TorchDispatchMode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ._memory import in_memory
from ._torch import DispatchMode, dispatch_modes, transforms_active

KEPT = 1024  # calls of an op
SEEN, NEVER = "seen", "never"
_aten: Any = torch.ops.aten
EMPTY = (_aten.empty.memory_format, _aten.new_empty.default, _aten.empty_like.default, _aten.empty_strided.default)
FILLS = {_aten.zeros.default: "zeros", _aten.ones_like.default: "ones"}


class Refused(Exception):
    """A call cannot be replayed."""


class Number:
    """A float among the arguments while they are recorded: it can be handed to a kernel, and nothing else."""

    def __init__(self, place: int, value: float) -> None:
        self.place, self.value = place, value

    def __bool__(self) -> bool:
        raise Refused

    def __eq__(self, other: object) -> bool:
        raise Refused

    __hash__ = None  # type: ignore[assignment]


def value_of(x: Any) -> Any:
    """An argument of a kernel as it is launched."""
    return x.value if isinstance(x, Number) else tuple(map(value_of, x)) if isinstance(x, tuple) else x


class Recorder(DispatchMode):
    """While it is entered, what torch and `launch` are asked for becomes lines of Python."""

    def __init__(self, flat: Sequence[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lines: list[str] = []
        self.values: dict[str, Any] = {"empty_strided": torch.empty_strided, "zeros": torch.zeros, "ones": torch.ones}
        self.hooks: list[list[Any]] = []  # of each kernel, which others fill
        self.guards: list[tuple[Callable[[], Any], Any]] = []
        self.tensors: dict[int, tuple[Tensor, str, str]] = {}  # by id: the tensor, its name, its pointer's
        self.count = len(flat)
        for i, x in enumerate(flat):
            if isinstance(x, Tensor):
                self.tensors[id(x)] = x, f"t{i}", f"p{i}"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not isinstance(made, Tensor):
            raise Refused
        name = f"x{len(self.lines)}"
        if func is _aten.detach.default and self.source(args[0])[0] == "x":  # what torch makes of each new tensor
            self.tensors[id(made)] = made, *self.tensors[id(args[0])][1:]
            return made
        if func in EMPTY:
            line = f"empty_strided({tuple(made.shape)}, {made.stride()}, {self._place(made)})"
        elif func in FILLS:
            line = f"{FILLS[func]}({tuple(made.shape)}, {self._place(made)})"
        else:
            named = [f"{key}={self.source(x)}" for key, x in (kwargs or {}).items()]
            line = f"{self.constant(func)}({', '.join([*map(self.source, args), *named])})"
        self.lines.append(f"{name} = {line}")
        self.tensors.setdefault(id(made), (made, name, f"{name}.data_ptr()"))
        return made

    def _place(self, x: Tensor) -> str:
        return f"dtype={self.constant(x.dtype)}, device={self.constant(x.device)}"

    def constant(self, value: Any) -> str:
        name = f"c{len(self.values)}"
        self.values[name] = value
        return name

    def source(self, x: Any, pointers: bool = False) -> str:
        """The argument as it is written; of tensors their pointers, for a kernel."""
        if isinstance(x, Tensor):
            if id(x) not in self.tensors:
                raise Refused  # made where the recorder could not see it
            _, name, pointer = self.tensors[id(x)]
            return pointer if pointers else name
        if isinstance(x, Number):
            return f"p{x.place}"
        if isinstance(x, list | tuple):
            return "(" + "".join(self.source(item, pointers) + ", " for item in x) + ")"
        return repr(x) if x is None or type(x) in (int, bool, str) else self.constant(x)

    def launch(self, kernel: Any, programs: int, launcher: Sequence[Any], given: Sequence[Any]) -> None:
        """A launch of `kernel`: launcher[0](programs, 1, 1, stream, *launcher[1:], *given)."""
        run, *fixed = (x if x is None else self.constant(x) for x in launcher)
        pointers = (self.source(x, pointers=True) for x in given)
        self.lines.append(f"{run}({programs}, 1, 1, stream, {', '.join(map(str, [*fixed, *pointers]))})")
        self.hooks.append(kernel.pre_run_hooks)

    def replay(self, answer: Any) -> Callable[..., Any]:
        """What was recorded as a function (flat, pointers, stream) -> answer."""
        unpacked = [
            f"{','.join(f'{kind}{i}' for i in range(self.count))}, = {of}"
            for kind, of in (("t", "flat"), ("p", "pointers"))
        ]
        body = [*unpacked, *self.lines, f"return {self.source(answer)}"]
        exec("def replay(flat, pointers, stream):\n  " + "\n  ".join(body), self.values)
        return self.values["replay"]  # type: ignore[no-any-return]


def _describe(flat: Sequence[Any]) -> tuple[Any, list[Any]] | None:
    """csrc/runtime/describe.h, without the extension."""
    key: list[Any] = []
    pointers: list[Any] = []
    for x in flat:
        if isinstance(x, Tensor):
            if in_memory(x) is not x or (not (pointer := x.data_ptr()) and x.numel()):
                return None
            pointers.append(pointer)
            key.append((x.shape, x.stride(), x.dtype, x.device, pointer % 16))
        elif x is None or type(x) is float:
            pointers.append(x)
            key.append(None if x is None else (x > 0, isfinite(x)))
        else:
            return None
    return tuple(key), pointers


try:
    from ._ext import describe as describe
except ImportError:
    describe = _describe


class _Recording(threading.local):
    recorder: Recorder | None = None


recording = _Recording()


class Replayed:
    """run(*groups, *needs), a kernel's forward or backward on flat arguments in so many `groups`, replayed where it can be.
    `launches`: the module with `is_watched`, and the `current` device and stream."""

    def __init__(self, run: Callable[..., Any], groups: int, launches: Any) -> None:
        self.run, self.groups, self.launches = run, groups, launches
        self.replays: dict[
            Any, Any
        ] = {}  # by what the tensors look like: `SEEN` once, `NEVER`, or what `_recorded` gives

    def __call__(self, *given: Any) -> Any:
        flat = given[0] if self.groups == 1 else (*given[0], *given[1], *given[2])
        watched = dispatch_modes() or transforms_active() or self.launches.is_watched()
        described = None if watched else describe(flat)
        if described is None:
            return self.run(*given)
        key = described[0], given[self.groups :]
        known = self.replays.get(key)
        if known is None:
            if len(self.replays) >= KEPT:
                self.replays.clear()
            self.replays[key] = SEEN
        elif known is SEEN:  # its kernels are compiled
            tensors = [id(x) for x in flat if isinstance(x, Tensor)]
            if len({*tensors}) == len(tensors):  # else what is recorded could not tell them apart
                return self._recorded(key, given)
        elif known is not NEVER:
            replay, device, hooks, guards = known
            here, stream = self.launches.current()
            if here == device and not any(hooks):
                if not guards or all(ask() == answer for ask, answer in guards):
                    return replay(flat, described[1], stream)
                del self.replays[key]
        return self.run(*given)

    def _recorded(self, key: Any, given: tuple[Any, ...]) -> Any:
        """The answer, recorded."""
        groups, place = [], 0
        for group in given[: self.groups]:
            groups.append([Number(place + i, x) if type(x) is float else x for i, x in enumerate(group)])
            place += len(group)
        recorder = Recorder([x for group in groups for x in group])
        recording.recorder = recorder
        try:
            with recorder:
                answer = self.run(*groups, *given[self.groups :])
            replay = recorder.replay(answer), self.launches.current()[0], recorder.hooks, recorder.guards
        except (Refused, TypeError, AttributeError):  # of a number that is more than handed on
            self.replays[key] = NEVER
            return self.run(*given)
        finally:
            recording.recorder = None
        self.replays[key] = replay
        return answer

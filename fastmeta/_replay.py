"""Repeats a call of Triton kernels without the Python between the kernels.

What such a call allocates and launches depends on what its tensors look like, never on their values. So the second call with
tensors that look alike is recorded: every operation of torch, every launch with its compiled kernel. What is recorded becomes
a function, for proto_loss about

    def replay(flat, pointers, stream):
        t0, t1, t2, t3 = flat
        p0, p1, p2, p3 = pointers
        x0 = empty_strided((32,), (1,), dtype=c0, device=c1)
        ...
        run0(608, 1, 1, stream, function0, metadata0, None, None, None, p0, p1, p2, None, p3, x0.data_ptr(), ...)
        return (x0,), ()

which later calls run. Pointers, numbers and the stream are those of each call; all else is in the key, or asked for anew (`guards`).
What cannot be recorded runs as ever, and so does all where somebody looks on: hooks of Triton, its debugger or instrumentation, a
TorchDispatchMode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._memory import in_memory
from ._torch import DispatchMode, dispatch_modes, transforms_active

try:
    from triton import __version__ as _version
    from triton import knobs as _knobs
    from triton.runtime.driver import driver as _driver
except ImportError:
    _version = ""

TESTED = ("3.6.", "3.9.")  # releases of Triton whose launch is known
KEPT = 1024  # calls of an op
INFINITY = float("inf")
_aten: Any = torch.ops.aten
ALLOCATES = (_aten.empty.memory_format, _aten.new_empty.default, _aten.empty_like.default, _aten.empty_strided.default)


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


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Number) else tuple(map(_value, x)) if isinstance(x, tuple) else x


class Recorder(DispatchMode):
    """While it is entered, what torch and `launch` are asked for becomes lines of Python."""

    def __init__(self, flat: Sequence[Any]) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.values: dict[str, Any] = {"empty_strided": torch.empty_strided, "zeros": torch.zeros}
        self.kernels: list[Any] = []
        self.guards: list[tuple[Callable[[], Any], Any]] = []
        self.tensors: dict[int, tuple[Tensor, str, str]] = {}  # by id: the tensor, its name, its pointer's
        self.count = len(flat)
        for i, x in enumerate(flat):
            if isinstance(x, Tensor):
                self.tensors.setdefault(id(x), (x, f"t{i}", f"p{i}"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not isinstance(made, Tensor):
            raise Refused
        name = f"x{len(self.lines)}"
        if func in ALLOCATES:
            line = f"empty_strided({tuple(made.shape)}, {made.stride()}, {self._place(made)})"
        elif func is _aten.zeros.default:
            line = f"zeros({tuple(made.shape)}, {self._place(made)})"
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
            return self.tensors[id(x)][2 if pointers else 1]
        if isinstance(x, Number):
            return f"p{x.place}"
        if isinstance(x, list | tuple):
            return "(" + "".join(self.source(item, pointers) + ", " for item in x) + ")"
        return repr(x) if x is None or type(x) in (int, bool, str) else self.constant(x)

    def launch(self, kernel: Any, programs: int, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        given = {name: _value(x) for name, x in options.items()}
        compiled = kernel[(programs,)](*map(_value, args), **given)
        if type(compiled).__name__ != "CompiledKernel":  # such as one that is still compiled
            raise Refused
        bound = kernel.signature.bind(*args, **{name: x for name, x in options.items() if name in kernel.arg_names})
        bound.apply_defaults()
        run, function, metadata = map(self.constant, (compiled.run, compiled.function, compiled.packed_metadata))
        pointers = ", ".join(self.source(x, pointers=True) for x in bound.arguments.values())
        self.lines.append(f"{run}({programs}, 1, 1, stream, {function}, {metadata}, None, None, None, {pointers})")
        self.kernels.append(kernel)

    def replay(self, answer: Any) -> Callable[..., Any]:
        """What was recorded as a function (flat, pointers, stream) -> answer."""
        unpacked = [f"{','.join(f'{kind}{i}' for i in range(self.count))}, = {of}" for kind, of in ("t flat".split(), "p pointers".split())]
        body = [*unpacked, *self.lines, f"return {self.source(answer)}"]
        exec("def replay(flat, pointers, stream):\n  " + "\n  ".join(body), self.values)
        return self.values["replay"]  # type: ignore[no-any-return]


def is_replayable() -> bool:
    """Whether Triton compiles its kernels, by a release whose launch is known."""
    return _version.startswith(TESTED) and not _knobs.runtime.interpret


def is_watched() -> bool:
    """Whether a launch is more than a launch."""
    runtime = _knobs.runtime
    return bool(
        dispatch_modes()
        or transforms_active()
        or runtime.launch_enter_hook.calls
        or runtime.launch_exit_hook.calls
        or runtime.debug
        or runtime.add_stages_inspection_hook
        or _knobs.compilation.instrumentation_mode
    )


def _describe(flat: Sequence[Any]) -> tuple[Any, list[Any]] | None:
    """csrc/runtime/describe.h, without the extension."""
    key: list[Any] = []
    pointers: list[Any] = []
    for x in flat:
        if isinstance(x, Tensor):
            if in_memory(x) is not x:
                return None
            pointers.append(x.data_ptr())
            key.append((x.shape, x.stride(), x.dtype, x.device, pointers[-1] % 16))
        elif x is None or type(x) is float:
            pointers.append(x)
            key.append(None if x is None else 0 < x < INFINITY)
        else:
            return None
    return tuple(key), pointers


try:
    from ._ext import describe
except ImportError:
    describe = _describe


class _Recording(threading.local):
    recorder: Recorder | None = None


recording = _Recording()


class Replayed:
    """run(*groups, *needs), a kernel's forward or backward on flat arguments in so many `groups`, replayed where it can be."""

    def __init__(self, run: Callable[..., Any], groups: int) -> None:
        self.run, self.groups = run, groups
        self.replays: dict[Any, Any] = {}  # by what tensors look like: how often that was met, `_REFUSED`, or what `_recorded` gives

    def __call__(self, *given: Any) -> Any:
        flat = given[0] if self.groups == 1 else (*given[0], *given[1], *given[2])
        described = None if is_watched() else describe(flat)
        if described is None:
            return self.run(*given)
        key = described[0], given[self.groups :]
        known = self.replays.get(key, 0)
        if known.__class__ is not int:
            replay, device, kernels, guards = known
            current = _driver.active
            if device == current.get_current_device() and not any(kernel.pre_run_hooks for kernel in kernels):
                if all(ask() == answer for ask, answer in guards):
                    return replay(flat, described[1], current.get_current_stream(device))
                del self.replays[key]
        elif known == 1:  # kernels are compiled by the first call
            return self._recorded(key, given)
        elif known == 0:
            if len(self.replays) >= KEPT:
                self.replays.clear()
            self.replays[key] = 1
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
            device = _driver.active.get_current_device()
            self.replays[key] = recorder.replay(answer), device, tuple(recorder.kernels), tuple(recorder.guards)
        except (Refused, TypeError, AttributeError):  # of a number that is more than handed on
            self.replays[key] = -1
            return self.run(*given)
        finally:
            recording.recorder = None
        return answer

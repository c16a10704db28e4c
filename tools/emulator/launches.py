"""What calls launch by the stub driver, replayed and not: what launch_checks.py compares."""

from __future__ import annotations

import ctypes
import gc
from types import SimpleNamespace

import torch


class Launches:
    """Notes the launches of a call, whichever way it goes: grid, stream, kernel and arguments; and how many were replayed."""

    def __init__(self):
        from triton.backends.nvidia.driver import CudaLauncher

        from fastmeta import _replay

        self.found, ordinary, constant, call = (
            [],
            CudaLauncher.__call__,
            _replay.Recorder.constant,
            _replay.Replayed.__call__,
        )

        def noted(launcher, x, y, z, stream, function, *rest):
            self.found.append((x, stream, function, rest[4:]))
            return ordinary(launcher, x, y, z, stream, function, *rest)

        CudaLauncher.__call__ = noted
        # No memory is used twice within a call, so that its address tells what it is.
        self.kept = []
        for name in ("empty_strided", "zeros", "ones"):
            setattr(torch, name, self.keeping(getattr(torch, name)))
        _replay.Recorder.constant = lambda recorder, x: constant(
            recorder, self.keeping(x) if isinstance(x, torch._ops.OpOverload) else x
        )
        _replay.Replayed.__call__ = lambda replayed, *given: (self.kept.append(given), call(replayed, *given))[1]

    def keeping(self, fn):
        def kept(*args, **kwargs):
            self.kept.append(fn(*args, **kwargs))
            return self.kept[-1]

        return kept

    def of(self, call, inputs):
        """Pointers by what they point to: an input's place, or the how manyth new tensor."""
        self.found.clear()
        self.kept.clear()
        call()
        places, new = {x.data_ptr(): f"input {i}" for i, x in enumerate(inputs) if x.numel()}, {}

        def named(x):
            if isinstance(x, tuple):
                return tuple(map(named, x))
            if isinstance(x, float):
                return ctypes.c_float(x).value  # as a launch rounds it
            pointer = x.data_ptr() if isinstance(x, torch.Tensor) else x
            if pointer in places:
                return places[pointer]
            is_pointer = isinstance(x, torch.Tensor) or (type(x) is int and x > 1 << 32)
            return new.setdefault(pointer, f"new {len(new)}") if is_pointer and pointer else pointer

        found = [(grid, stream, function, named(given)) for grid, stream, function, given in self.found]
        return found


def ordinary(fn):
    """fn() with nothing replayed."""
    from fastmeta.kernels import _launch

    before, _launch.is_watched = _launch.is_watched, lambda: True
    try:
        return fn()
    finally:
        _launch.is_watched = before


def same_launches(call, inputs):
    """Of a call that was recorded by calls before, replayed and not; and no kernel is loaded for it."""
    for _ in range(2):
        call()
    modules, ways = env.stub.modules(), replays()
    replayed = env.launches.of(call, inputs)
    assert replays() == ways, "a later call was recorded"
    expected = ordinary(lambda: env.launches.of(call, inputs))
    assert expected, "no launch"
    assert replayed == expected, f"{replayed} instead of {expected}"
    assert env.stub.modules() == modules, "a later call loads a kernel"


def known():
    """Of each call of a kernel's forward or backward, what became of it."""
    from fastmeta._replay import Replayed

    return [known for x in gc.get_objects() if type(x) is Replayed for known in x.replays.values()]


def replays():
    """How many calls are recorded."""
    return sum(x.__class__ is tuple for x in known())


env = SimpleNamespace()


def forget():
    from fastmeta._replay import Replayed

    for x in gc.get_objects():
        if type(x) is Replayed:
            x.replays.clear()

"""easyfsl's samplers. Its `TaskSampler` hands torch's Sampler an argument that today's does not take; here it may."""

from __future__ import annotations

import functools
from typing import Any

from .. import _library

_of_library = _library.otherwise("easyfsl.samplers", ("TaskSampler",))
__path__: list[str] = []  # submodules are the library's


class _Sampler:
    def __init__(self, data_source: Any = None) -> None:
        pass


def __getattr__(name: str) -> Any:
    found = _of_library(name)
    return _mended(found) if name == "TaskSampler" else found


@functools.cache
def _mended(kind: type) -> type:
    return type(kind.__name__, (kind, _Sampler), {"__doc__": kind.__doc__, "__module__": kind.__module__})

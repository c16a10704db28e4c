"""Where data sources keep what they made, and a file of pixels: as they are, then a checksum of their recipe and of them."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

_MAPPED = 2**28  # bytes, from which a file is mapped: less is read in a blink, and then depends on no file
_SEAL = 32
_NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE


def default() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "fastmeta")


def load(path: Path, recipe: bytes, shape: Sequence[int]) -> Tensor | None:
    """The uint8 pixels that `save` wrote for this recipe, else None; a large file is mapped, and read once for its checksum."""
    size = math.prod(shape)
    try:
        if not os.path.isfile(path):
            return None
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != size + _SEAL:
                return None
            data = _mapped(file.fileno()) if size >= _MAPPED else bytearray(file.read())
    except OSError:
        return None
    pixels = torch.frombuffer(data, dtype=torch.uint8, count=size)
    with memoryview(data) as view:
        digest = hashlib.sha256(recipe)
        digest.update(view[:size])
        sound = view[size:] == digest.digest()
    return pixels.view(*shape) if sound else None


def save(
    op: str, path: Path, recipe: bytes, shape: Sequence[int], make: Callable[[], Iterable[memoryview]]
) -> Tensor | None:
    """Writes what `make` gives, part by part, beside `path`, then renames, and loads it. None, and a warning, where that fails."""
    pixels = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            part = Path(scratch, path.name)
            with part.open("wb") as file:
                digest = hashlib.sha256(recipe)
                for chunk in make():
                    file.write(chunk)
                    digest.update(chunk)
                file.write(digest.digest())
            pixels = load(part, recipe, shape)
            part.replace(path)
    except OSError as error:
        warnings.warn(f"{op}: the cache must be writable, got {error}; it is built anew each time", stacklevel=4)
    return pixels


def _mapped(file: int) -> mmap.mmap:
    """A write changes this process's copy alone; without a reservation a file may be larger than the memory."""
    flags = mmap.MAP_PRIVATE | _NO_RESERVE
    return mmap.mmap(file, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)

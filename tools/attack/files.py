"""Damaged files: a documented error that names the file, or the same result; never silently another."""

from __future__ import annotations

import io
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmeta.data import Glyphs, Omniglot, TaskSampler

from .draw import Draw
from .problem import Finding, first_line, says_what

MEMBER = "small/Latin/character{c:02}/{c:04}_{d:02}.png"


def mutate(draw: Draw, data: bytes) -> bytes:
    """A few bytes changed, lost, repeated, or put in."""
    found = bytearray(data)
    for _ in range(draw.pick("damages", (1, 1, 2, 5))):
        near_end = min(
            len(found), len(found) if draw.odd("anywhere", 0.5) else 300
        )  # where a zip file has its directory
        at = len(found) - 1 - draw.random("at").randrange(near_end)
        length = draw.pick("length", (1, 2, 8, 100))
        kind = draw.pick("damage", ("flip", "zero", "cut", "repeat", "insert", "end"))
        draw.note(f"{kind} at {at}")
        if kind == "flip":
            found[at] ^= 1 << draw.pick("bit", range(8))
        elif kind == "end":
            del found[max(at, 1) :]
        else:
            new = {
                "zero": bytes(length),
                "cut": b"",
                "repeat": bytes(found[at : at + length]) * 2,
                "insert": b"\xff" * length,
            }[kind]
            found[at : at + (0 if kind == "insert" else length)] = new
        found = found or bytearray(b"\0")
    return bytes(found)


def _png(size: int, stroke: int) -> bytes:
    from PIL import Image

    paper, stream = np.ones((size, size), dtype=bool), io.BytesIO()
    paper[stroke : stroke + 9, 20:40] = False
    Image.fromarray(paper).save(stream, format="PNG")
    return stream.getvalue()


@cache
def _members() -> dict[str, bytes]:
    return {MEMBER.format(c=c, d=d): _png(105, 30 * c + 2 * d) for c in (1, 2) for d in range(1, 21)}


def _archive(members: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data)
    return stream.getvalue()


def _omniglot(folder: Path, data: bytes) -> Any:
    (folder / "small.zip").write_bytes(data)
    found = Omniglot(folder, "small", size=14)
    return found.images, found.characters


def omniglot(draw: Draw, folder: Path) -> None:
    members = list(_members().items())
    want = _omniglot(folder, _archive(members))
    kind = draw.pick("omniglot", {"bytes": 6, "twice": 1, "instead": 1, "inside": 2})
    at, (name, image) = (i := draw.pick("member", range(len(members)))), members[i]
    if kind == "twice":  # a member stands for another of its character
        members[at] = members[at - 1 if at % 20 else at + 1]
    if kind == "instead":
        members[at] = (name, draw.pick("instead", (_png(104, 3), _png(20000, 3), b"", b"GIF89a", image[:50])))
    if kind == "inside":
        members[at] = (name, mutate(draw, image))
    data = _archive(members)
    _holds(
        draw,
        f"Omniglot, {kind}",
        folder,
        lambda: _omniglot(folder, mutate(draw, data) if kind == "bytes" else data),
        want,
    )


@cache
def _cached() -> tuple[bytes, Any]:
    with tempfile.TemporaryDirectory() as folder:
        found = Glyphs("test", size=3, examples=1, cache=folder)
        (file,) = Path(folder).iterdir()
        return file.name.encode() + b"\n" + file.read_bytes(), (found.images, found.characters)


def _npz(draw: Draw, data: bytes) -> bytes:
    """The cache with an array gone, or of another shape or type; or a plain array."""
    arrays, stream = dict(np.load(io.BytesIO(data))), io.BytesIO()
    name, kind = draw.pick("array", list(arrays)), draw.pick("change", ("gone", "shape", "type", "plain", "objects"))
    draw.note(f"{name} {kind}")
    changed = {"shape": arrays[name].reshape(-1)[:3], "type": np.zeros(arrays[name].shape, dtype=np.float32)}
    if kind == "plain":
        np.save(stream, np.arange(3))
        return stream.getvalue()
    if kind == "objects":
        changed["objects"] = np.array([{}], dtype=object)
    arrays = {n: changed.get(kind, a) if n == name else a for n, a in arrays.items() if (n, kind) != (name, "gone")}
    np.savez(stream, **arrays)
    return stream.getvalue()


def glyphs(draw: Draw, folder: Path) -> None:
    """Whatever the cache holds, the letters are the same: a broken one is made anew."""
    packed, want = _cached()
    name, data = packed.split(b"\n", 1)

    def load() -> Any:
        (folder / name.decode()).write_bytes(_npz(draw, data) if draw.odd("structure", 0.4) else mutate(draw, data))
        found = Glyphs("test", size=3, examples=1, cache=folder)
        return found.images, found.characters

    _holds(draw, "Glyphs", folder, load, want, raises=False)


STATES: tuple[Any, ...] = (None, "1", 1.5, float("nan"), -1, True, 2**70, [], {}, torch.tensor(3), torch.tensor([1, 2]))


def sampler(draw: Draw, folder: Path) -> None:
    """A state with an entry of another type, gone or added, is refused; one that is not goes on where it says."""
    fresh = TaskSampler(lambda count, generator: generator.rand(count, 2), 2, seed=5)
    state: dict[str, Any] = dict(fresh.state_dict())
    key, kind = draw.pick("key", list(state)), draw.pick("state", ("value", "gone", "no dict"))
    if kind == "gone":
        del state[key]
    state[key] = draw.pick("value", STATES) if kind == "value" else state.get(key)
    state = {k: v for k, v in state.items() if v is not None or kind == "value"}
    draw.note(f"{state}")
    before = fresh.state_dict()
    try:
        fresh.load_state_dict(state if kind != "no dict" else draw.pick("value", STATES))
        next(fresh)
    except Exception as error:
        if not says_what("TaskSampler.load_state_dict", error):
            raise Finding(f"TaskSampler: {first_line(error)}", str(state)) from error
        if fresh.state_dict() != before:
            raise Finding("TaskSampler keeps a part of a state that it refused", str(state)) from error
        return
    if kind != "value" or type(state[key]) is not int or (key == "next" and state[key] < 0):
        raise Finding("TaskSampler takes a broken state", str(state))


def _holds(draw: Draw, what: str, folder: Path, load: Callable[[], Any], want: Any, raises: bool = True) -> None:
    try:
        images, characters = load()
    except Exception as error:
        if not raises or not says_what("Omniglot", error) or str(folder) not in str(error):
            raise Finding(f"{what}: {first_line(error).replace(str(folder), '')}", str(error)[:300]) from error
        return
    if characters != want[1] or not torch.equal(images, want[0]):
        raise Finding(f"{what}: another result, silently", f"{list(images.shape)}, {characters[:2]}")


def damaged(draw: Draw) -> None:
    subject = draw.pick("file", {omniglot: 5, glyphs: 2, sampler: 3})
    draw.note(subject.__name__)
    with tempfile.TemporaryDirectory() as folder:
        subject(draw, Path(folder))

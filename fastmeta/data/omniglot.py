"""Omniglot: handwritten characters, read from the official zip archives."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import _check, _drawings

_DRAWINGS = 20


class Omniglot:
    """Characters of several alphabets, each drawn once by 20 people, from `<root>/<archive>.zip`.

    root: the folder of the archives, as published: images_background, images_evaluation, images_background_small1, ...
    alphabets: those to keep (all); size: pixels a side, made from 105 x 105 by antialiased bilinear scaling;
    rotations: append every class turned by 90, 180 and 270 degrees, counterclockwise, as a new one: four times as many.

    images: [classes, 20, 1, size, size], uint8, ink 255 on 0 (`sample_episodes` makes it 1 on 0), sorted by alphabet,
    character and drawing, the upright classes first, then each turn; characters: (alphabet, character) of each class,
    where a turned one is called `character01/rot090`; alphabets: the names kept, sorted.

    Errors: FileNotFoundError for a missing archive; ValueError for a broken one, one that is not laid out as published,
    one that holds a file twice (names that differ in case or in the kind of slash only are one file), a character without
    20 drawings, an unknown alphabet; for a drawing that is broken, not 105 x 105, transparent, interlaced or of 16 bits;
    each names the file. TypeError for arguments of other types. Needs pillow: `pip install fastmeta[data]`.

    Source: Lake, Salakhutdinov and Tenenbaum 2015, Science 350, github.com/brendenlake/omniglot; the turns as new
    classes: Santoro et al. 2016, arXiv:1605.06065.
    """

    images: Tensor
    characters: list[tuple[str, str]]
    alphabets: list[str]

    def __init__(
        self,
        root: str | os.PathLike[str],
        archive: str = "images_background",
        *,
        alphabets: Sequence[str] | None = None,
        size: int = 28,
        rotations: bool = False,
    ) -> None:
        op = "Omniglot"
        root = _check.path(op, "root", root)
        if not isinstance(archive, str):
            raise TypeError(f"{op}: archive must be a name, got {type(archive).__name__}")
        chosen = _chosen(op, alphabets)
        (size,) = _check.positive(op, size=size)
        _check.room(op, "size", _DRAWINGS * size * size)
        rotations = _check.flag(op, "rotations", rotations)
        path = root / f"{archive}.zip"
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{op}: root must hold the archive, got no file {path}")
        with _drawings.archive(path, op, f"{op}: the archive") as file:
            drawings = _layout(path, file.members, chosen)
            scaled = [_drawings.scaled(file.drawings(names), size) for names in drawings.values()]
        self.images = torch.stack(scaled)
        self.characters = list(drawings)
        self.alphabets = sorted({alphabet for alphabet, _ in drawings})
        if rotations:
            turns = [torch.rot90(self.images, quarter, (-2, -1)) for quarter in range(4)]
            self.images = torch.cat(turns)
            self.characters += [
                (alphabet, f"{character}/rot{90 * quarter:03}")
                for quarter in (1, 2, 3)
                for alphabet, character in drawings
            ]


def _chosen(op: str, alphabets: Any) -> list[str] | None:
    if alphabets is None:
        return None
    names: list[Any] = list(alphabets) if isinstance(alphabets, Iterable) else [alphabets]
    if isinstance(alphabets, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{op}: alphabets must be a sequence of names, got {type(alphabets).__name__}")
    return names


def _layout(path: Path, members: Iterable[str], alphabets: list[str] | None) -> dict[tuple[str, str], list[str]]:
    """(alphabet, character) -> its 20 members `<archive>/<alphabet>/<character>/<drawing>.png`, all sorted."""
    found: dict[tuple[str, str], list[str]] = {}
    for member in sorted(members):
        parts = member.split("/")
        if len(parts) == 4 and parts[0] == path.stem and member.endswith(".png"):
            found.setdefault((parts[1], parts[2]), []).append(member)
    if not found:
        raise ValueError(
            f"Omniglot: the archive must hold {path.stem}/<alphabet>/<character>/<drawing>.png, got none in {path}"
        )
    known = sorted({alphabet for alphabet, _ in found})
    wanted = known if alphabets is None else alphabets
    for alphabet in wanted:
        if alphabet not in known:
            raise ValueError(f"Omniglot: alphabets must be among {known} of {path}, got {alphabet!r}")
    if not wanted:
        raise ValueError(f"Omniglot: alphabets must name at least one of {known} of {path}, got none")
    kept = {key: names for key, names in found.items() if key[0] in wanted}
    for (alphabet, character), names in kept.items():
        if len(names) != _DRAWINGS:
            raise ValueError(
                f"Omniglot: {alphabet}/{character} of {path} must have {_DRAWINGS} drawings, got {len(names)}"
            )
    return kept

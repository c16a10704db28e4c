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
_TURNS = ("rot000", "rot090", "rot180", "rot270")
Character = tuple[str, str]  # its alphabet and its own name


class Omniglot:
    """Characters of several alphabets, each drawn once by 20 people, from `<root>/<archive>.zip`.

    `root`: the folder of the archives, as published.
    `archive`: the name of one, or of several that are read together: images_background, images_evaluation,
    images_background_small1, ...
    `alphabets`: those to keep; None: all.
    `size`: pixels a side, made from 105 x 105 by antialiased bilinear scaling.
    `rotations`: add every class turned by 90, 180 and 270 degrees, counterclockwise, as a new one: four times as many.
    `classes`: instead of `alphabets` and `rotations`, the classes to keep, in their order. They are names
    `<alphabet>/<character>/rot090` (no turn or rot000: upright), or a text file of them, one a line. The usual split of the
    papers is such files, with archive=("images_background", "images_evaluation").

    The attribute `images` is `[classes, 20, 1, size, size]`, uint8, ink 255 on 0 (`sample_episodes` makes it 1 on 0). It is sorted
    by alphabet, character and drawing, the upright classes first, then each turn. `characters` is the (alphabet, character) of
    each class, where a turned one is called `character01/rot090`; `alphabets` is the names kept, sorted.

    Errors: FileNotFoundError for a missing archive; TypeError for arguments of other types; ValueError, which names the file:

    - for an archive that is broken, not laid out as published, or holds a file twice (names that differ only in case or in the
      kind of slash are one file), and for a character without 20 drawings or an unknown alphabet;
    - for a drawing that is broken, not 105 x 105, transparent, interlaced or of 16 bits.

    Needs pillow: `pip install fastmeta[data]`.

    Source: Lake, Salakhutdinov and Tenenbaum 2015, Science 350, github.com/brendenlake/omniglot; the turns as new
    classes: Santoro et al. 2016, arXiv:1605.06065.
    """

    images: Tensor
    characters: list[tuple[str, str]]
    alphabets: list[str]

    def __init__(
        self,
        root: str | os.PathLike[str],
        archive: str | Sequence[str] = "images_background",
        *,
        alphabets: Sequence[str] | None = None,
        size: int = 28,
        rotations: bool = False,
        classes: str | os.PathLike[str] | Sequence[str] | None = None,
    ) -> None:
        op = "Omniglot"
        root = _check.path(op, "root", root)
        archives = _check.names(op, "archive", archive if not isinstance(archive, str) else [archive])
        chosen = None if alphabets is None else _check.names(op, "alphabets", alphabets)
        (size,) = _check.positive(op, size=size)
        _check.room(op, "size", _DRAWINGS * size * size)
        rotations = _check.flag(op, "rotations", rotations)
        if classes is not None and (chosen is not None or rotations):
            raise ValueError(f"{op}: classes must come without alphabets and rotations, got both")
        wanted = None if classes is None else _classes(op, classes)
        upright = _upright(op, root, archives, chosen, size, None if wanted is None else {key for key, _ in wanted})
        if wanted is None:
            wanted = [(key, quarter) for quarter in range(4 if rotations else 1) for key in upright]
        self.images = torch.stack([torch.rot90(upright[key], quarter, (-2, -1)) for key, quarter in wanted])
        self.characters = [
            (alphabet, character + (f"/rot{90 * quarter:03}" if quarter else ""))
            for (alphabet, character), quarter in wanted
        ]
        self.alphabets = sorted({alphabet for alphabet, _ in self.characters})


def _upright(
    op: str, root: Path, archives: list[str], alphabets: list[str] | None, size: int, only: set[Character] | None
) -> dict[Character, Tensor]:
    """The drawings [20, 1, size, size] of each character of the archives; `only`: those to read, all of which must be there."""
    found: dict[Character, Tensor] = {}
    for name in archives:
        path = root / f"{name}.zip"
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{op}: root must hold the archive, got no file {path}")
        with _drawings.archive(path, op, f"{op}: the archive") as file:
            for key, members in _layout(path, file.members, alphabets).items():
                if key in found:
                    raise ValueError(
                        f"{op}: every character must be in one archive, got {'/'.join(key)} again in {path}"
                    )
                if only is None or key in only:
                    found[key] = _drawings.scaled(file.drawings(members), size)
    for key in only or ():
        if key not in found:
            raise ValueError(f"{op}: classes must be characters of {', '.join(archives)}, got {'/'.join(key)}")
    return found


def _classes(op: str, classes: Any) -> list[tuple[Character, int]]:
    """Each class's character and its quarter turns."""
    names = _check.listed(op, "classes", classes)
    found = []
    for name in names:
        parts = name.split("/")
        alphabet, character, turn = (
            parts if len(parts) == 3 else (*parts, "rot000") if len(parts) == 2 else ("", "", "")
        )
        if not (alphabet and character and turn in _TURNS):
            raise ValueError(f"{op}: classes must be names <alphabet>/<character>/rot090, got {name!r}")
        found.append(((alphabet, character), _TURNS.index(turn)))
    _check.once(op, "classes", found)
    return found


def _layout(path: Path, members: Iterable[str], alphabets: list[str] | None) -> dict[Character, list[str]]:
    """(alphabet, character) -> its 20 members `<archive>/<alphabet>/<character>/<drawing>.png`, all sorted."""
    found: dict[Character, list[str]] = {}
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

"""Omniglot: handwritten characters, read from the official zip archives."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import _check

_DRAWINGS, _PIXELS = 20, 105


class Omniglot:
    """Characters of several alphabets, each drawn once by 20 people, from `<root>/<archive>.zip`.

    root: the folder of the archives, as published: images_background, images_evaluation, images_background_small1, ...
    alphabets: those to keep (all); size: pixels a side, made from 105 x 105 by antialiased bilinear scaling;
    rotations: append every class turned by 90, 180 and 270 degrees, counterclockwise, as a new one: four times as many.

    images: [classes, 20, 1, size, size], uint8, ink 255 on 0 (`sample_episodes` makes it 1 on 0), sorted by alphabet,
    character and drawing, the upright classes first, then each turn; characters: (alphabet, character) of each class,
    where a turned one is called `character01/rot090`; alphabets: the names kept, sorted.

    Errors: FileNotFoundError for a missing archive; ValueError for a broken one, one that is not laid out as published,
    a broken drawing, one that is not 105 x 105, a character without 20 drawings, an unknown alphabet; each names the
    file. Needs pillow: `pip install fastmeta[data]`.

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
        _check.positive("Omniglot", size=size)
        path = Path(root) / f"{archive}.zip"
        if not path.is_file():
            raise FileNotFoundError(f"Omniglot: root must hold the archive, got no file {path}")
        try:
            with zipfile.ZipFile(path) as file:
                drawings = _layout(path, file.namelist(), alphabets)
                scaled = [_scale(strokes, size) for strokes in _read(path, file, drawings)]
        except zipfile.BadZipFile as error:
            raise ValueError(f"Omniglot: the archive must be a sound zip file, got {path}: {error}") from error
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


def _layout(path: Path, members: Sequence[str], alphabets: Sequence[str] | None) -> dict[tuple[str, str], list[str]]:
    """(alphabet, character) -> its 20 members `<archive>/<alphabet>/<character>/<drawing>.png`, all sorted."""
    found: dict[tuple[str, str], list[str]] = {}
    for member in sorted(members):
        parts = PurePosixPath(member).parts
        if len(parts) == 4 and parts[0] == path.stem and member.endswith(".png"):
            found.setdefault((parts[1], parts[2]), []).append(member)
    if not found:
        raise ValueError(
            f"Omniglot: the archive must hold {path.stem}/<alphabet>/<character>/<drawing>.png, got none in {path}"
        )
    known = sorted({alphabet for alphabet, _ in found})
    wanted = known if alphabets is None else list(alphabets)
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


def _read(path: Path, file: zipfile.ZipFile, drawings: dict[tuple[str, str], list[str]]) -> Iterator[Tensor]:
    """Of each character [20, 105, 105], float32, ink = 1 (the files have ink black)."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("Omniglot: pillow must be installed (pip install fastmeta[data]), got none") from error
    for names in drawings.values():
        pixels = np.empty((_DRAWINGS, _PIXELS, _PIXELS), dtype=np.float32)
        for index, name in enumerate(names):
            try:
                with file.open(name) as stream, Image.open(stream) as image:
                    paper = np.asarray(image.convert("L"), dtype=np.float32)
            except (OSError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
                raise ValueError(f"Omniglot: a drawing must be a sound PNG, got {name} of {path}: {error}") from error
            if paper.shape != (_PIXELS, _PIXELS):
                raise ValueError(
                    f"Omniglot: a drawing must be {_PIXELS} x {_PIXELS} pixels, got "
                    f"{paper.shape[1]} x {paper.shape[0]} in {name} of {path}"
                )
            pixels[index] = 1 - paper / 255
        yield torch.from_numpy(pixels)


def _scale(strokes: Tensor, size: int) -> Tensor:
    """[20, 105, 105] in [0, 1] -> [20, 1, size, size], uint8."""
    scaled = F.interpolate(strokes[:, None], (size, size), mode="bilinear", antialias=True)
    return scaled.mul_(255).round_().to(torch.uint8)

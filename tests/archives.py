"""Archives laid out as Omniglot's, of drawings that are a square each."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

Members = dict[str, bytes]


def png(paper: np.ndarray) -> bytes:
    """One bit a pixel, white where True, as Omniglot's files are."""
    stream = io.BytesIO()
    Image.fromarray(paper).save(stream, format="PNG")
    return stream.getvalue()


def drawing(row: int, column: int) -> bytes:
    """A black square of 15 pixels at 15 * (row, column) on white."""
    paper = np.ones((105, 105), dtype=bool)
    paper[15 * row : 15 * row + 15, 15 * column : 15 * column + 15] = False
    return png(paper)


def characters(archive: str, layout: Mapping[str, int]) -> Members:
    """Of each alphabet so many characters of 20 drawings: the square's row is the character, its column the drawing."""
    return {
        f"{archive}/{alphabet}/character{character + 1:02}/{character:04}_{number + 1:02}.png": drawing(
            character, number % 7
        )
        for alphabet, count in layout.items()
        for character in range(count)
        for number in range(20)
    }


def write(folder: Path, archive: str, members: Members) -> Path:
    path = folder / f"{archive}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in reversed(members):  # any order in the file
            file.writestr(name, members[name])
    return path

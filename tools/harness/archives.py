"""Archives laid out as Omniglot's, of drawings that are a square each."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
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


def raw_png(
    *,
    width: int = 105,
    height: int = 105,
    depth: int = 1,
    colour: int = 0,
    interlaced: int = 0,
    rows: int | None = None,
    extra: bytes = b"",
) -> bytes:
    """White, with what Pillow would not write: a header that its rows do not fit, and parts between the two."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = b"\0" + b"\xff" * ((width * depth * channels + 7) // 8)
    pixels = zlib.compress(row * (height if rows is None else rows))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + extra + part(b"IDAT", pixels) + part(b"IEND", b"")


def part(kind: bytes, body: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


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


def write(folder: Path, archive: str, members: Members, *more: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    """`more`: members after those, which may have their names."""
    path = folder / f"{archive}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate name", UserWarning)
        for name in reversed(members):  # any order in the file
            file.writestr(name, members[name])
        for name_or_info, content in more:
            file.writestr(name_or_info, content)
    return path

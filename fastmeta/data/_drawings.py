"""Drawings in zip archives: looked at before they are decoded. Whatever is wrong with a file is a ValueError that names it."""

from __future__ import annotations

import contextlib
import io
import posixpath
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS = 105  # a side, as published
_LARGEST = 2**18  # bytes of a member; a published drawing has a few hundred
_START = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1}  # by a PNG's colour type: grey, RGB, palette
_DEPTHS = {0: (1, 2, 4, 8), 2: (8,), 3: (1, 2, 4, 8)}  # bits a channel


class Archive:
    """A zip file's members by name: `/` between the parts on every platform, without `.` and `..`; no name stands twice.

    op, whole: what messages begin with, those on a member and those on the whole file.
    """

    def __init__(self, op: str, whole: str, path: Path, file: zipfile.ZipFile) -> None:
        self.op, self.path, self._whole, self._file = op, path, whole, file
        self.members: dict[str, zipfile.ZipInfo] = {}
        seen: dict[str, str] = {}
        for member in file.infolist():
            if not member.filename:
                raise ValueError(f"{whole} must be a sound zip file, got {path}: a member without a name")
            if member.is_dir():
                continue
            name = posixpath.normpath(member.filename.replace("\\", "/")).lstrip("/")
            alike = unicodedata.normalize("NFC", name).casefold()  # one file where a disk knows no case
            if alike in seen:
                both = name if seen[alike] == name else f"{seen[alike]} and {name}"
                raise ValueError(f"{whole} must hold every file once, got {both} twice in {path}")
            seen[alike] = name
            self.members[name] = member

    def read(self, name: str) -> bytes:
        with _blamed(f"{self._whole} must be a sound zip file, got {self.path}: {name}"):
            return self._read(name)

    def _read(self, name: str) -> bytes:
        member = self.members[name]
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError("it is a link")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others decompress without a limit
            raise ValueError(f"it must be stored or deflated, got method {member.compress_type}")
        if member.file_size > _LARGEST:
            raise ValueError(f"it must have at most {_LARGEST} bytes, got {member.file_size}")
        with self._file.open(member) as stream:
            data = stream.read(member.file_size)  # the last read compares the checksum
        if len(data) != member.file_size:
            raise ValueError(f"it must have {member.file_size} bytes, got {len(data)}")
        return data

    def drawings(self, names: Sequence[str]) -> Tensor:
        """[n, 105, 105], float32, ink = 1 (the files have ink black)."""
        try:
            from PIL import PngImagePlugin
        except ImportError as error:
            raise ImportError(f"{self.op}: pillow must be installed (pip install fastmeta[data]), got none") from error
        pixels = np.empty((len(names), PIXELS, PIXELS), dtype=np.float32)
        for index, name in enumerate(names):
            blamed = f"{self.op}: a drawing must be a sound PNG, got {name} of {self.path}"
            with _blamed(blamed):
                data = self._read(name)
                width, height = _size(data)
            if (width, height) != (PIXELS, PIXELS):
                raise ValueError(
                    f"{self.op}: a drawing must be {PIXELS} x {PIXELS} pixels, got {width} x {height} in {name} of {self.path}"
                )
            with _blamed(blamed), PngImagePlugin.PngImageFile(io.BytesIO(data)) as image:
                pixels[index] = 1 - np.asarray(image.convert("L"), dtype=np.float32) / 255
        return torch.from_numpy(pixels)


@contextlib.contextmanager
def archive(path: Path, op: str, whole: str) -> Iterator[Archive]:
    blamed = f"{whole} must be a sound zip file, got {path}"
    with contextlib.ExitStack() as opened:
        with _blamed(blamed):
            stream = opened.enter_context(path.open("rb"))
            file = opened.enter_context(zipfile.ZipFile(stream))
            stated, listed = _stated(stream), len(file.infolist())
            if stated != min(listed, 2**16 - 1):
                raise ValueError(f"it states {stated} members, and lists {listed}")
        yield Archive(op, whole, path, file)


def _stated(stream: IO[bytes]) -> int:
    """The number of members in the record at a zip file's end, 2**16 - 1 for more; zipfile takes as many as it comes upon."""
    stream.seek(max(0, stream.seek(0, io.SEEK_END) - 22 - 2**16))
    tail = stream.read()
    number: int
    (number,) = struct.unpack_from("<H", tail, tail.rfind(b"PK\5\6") + 10)
    return number


def scaled(strokes: Tensor, size: int) -> Tensor:
    """[n, 105, 105] in [0, 1] -> [n, 1, size, size], uint8."""
    pixels = F.interpolate(strokes[:, None], (size, size), mode="bilinear", antialias=True)
    return pixels.mul_(255).round_().to(torch.uint8)


@contextlib.contextmanager
def _blamed(message: str) -> Iterator[None]:
    """Broken files raise whatever zipfile, zlib, struct and Pillow come upon: any of it becomes a ValueError of this message."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{message}: {error or type(error).__name__}") from error


def _size(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG that is whole, and whose pixels a byte of grey tells: else ValueError, before anything is decoded.

    Pillow takes rows that are missing for black ones, cuts 16 bits off at 8 and leaves transparency out.
    """
    chunks = _chunks(data)
    kinds = [kind for kind, _ in chunks]
    if kinds.count(b"IHDR") != 1 or kinds[0] != b"IHDR" or kinds[-1] != b"IEND":
        raise ValueError("it must be one image from IHDR to IEND")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    if depth not in _DEPTHS.get(colour, ()) or b"tRNS" in kinds or interlaced:
        raise ValueError("it must have 8 bits a channel or fewer, and be neither transparent nor interlaced")
    if colour == 3 and b"PLTE" not in kinds:
        raise ValueError("it must have the palette that its pixels are numbers of")
    if max(width, height) <= PIXELS:  # a larger one is refused for its size
        row = 1 + (width * depth * _CHANNELS[colour] + 7) // 8
        stream = zlib.decompressobj()
        rows = stream.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"), height * row + 1)
        if len(rows) != height * row or not stream.eof:
            raise ValueError(f"it must have {height} rows of {row} bytes, got other than {height * row} bytes in all")
    return width, height


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The kind and the body of each part of a PNG."""
    if not data.startswith(_START):
        raise ValueError("it does not begin as a PNG does")
    found, place = [], len(_START)
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + 8 + length]
        place += 12 + length
        if place > len(data):
            raise ValueError("it ends early")
        if zlib.crc32(kind + body) != int.from_bytes(data[place - 4 : place], "big"):
            raise ValueError(f"the checksum of its part {kind!r} is wrong")
        found.append((kind, body))
    return found

"""Image files of the formats that Pillow reads, as squares of bytes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
AT_ONCE = 256  # images in memory


def version(op: str) -> str:
    """What the pixels of a file depend on: Pillow's version and this code."""
    try:
        import PIL
    except ImportError as error:
        raise ImportError(f"{op}: pillow must be installed (pip install fastmeta[data]), got none") from error
    return f"{PIL.__version__} {zlib.crc32(Path(__file__).read_bytes()):08x}"


def squares(op: str, files: Sequence[str], size: int, channels: int) -> Iterator[memoryview]:
    """Of each file in order [channels, size, size], uint8, many in a part; at the end ValueError, if files are broken, with their names."""
    broken: list[str] = []

    def pixels(path: str) -> np.ndarray | None:
        try:
            return _square(path, size, channels)
        except Exception as error:  # whatever Pillow comes upon in a broken file
            reason = str(error).replace(f" {path!r}", "") or type(error).__name__
            broken.append(f"{path} ({' '.join(reason.split())})")
            return None

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # Pillow decodes without Python's lock
        for start in range(0, len(files), AT_ONCE):
            found = [z for z in pool.map(pixels, files[start : start + AT_ONCE]) if z is not None]
            if not broken:
                yield np.stack(found).data
    if broken:
        raise ValueError(f"{op}: every image must be sound, got {len(broken)} that are not: {listed(broken)}")


def listed(names: Sequence[str]) -> str:
    """At most ten, sorted."""
    return ", ".join(sorted(names)[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _square(path: str, size: int, channels: int) -> np.ndarray:
    """[channels, size, size], uint8: upright, on white, the middle square."""
    from PIL import Image, ImageOps

    with Image.open(path) as file:
        if file.mode.startswith(("I", "F")):  # Pillow would cut 16 bits off at 8
            raise ValueError(f"it must have 8 bits a channel, got Pillow's mode {file.mode}")
        image: Image.Image = ImageOps.exif_transpose(file)
        if {"A", "a"} & {*image.getbands()} or "transparency" in image.info:
            seen = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
        image = image.convert("L" if channels == 1 else "RGB")
        square = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1))

"""Folders of class folders of generated images, and what `image_folder` says of them, for the tests of it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")

from fastmeta.data import ImageFolder, image_folder  # noqa: E402


def noise(seed: int, height: int = 12, width: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def put(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture(name="root")
def root_fixture(tmp_path: Path) -> Path:
    """Three classes of 3, 2 and 4 images."""
    for name, count in (("cat", 3), ("ant", 2), ("dog", 4)):
        for number in range(count):
            put(tmp_path / "root" / name / f"{number}.png", noise(10 * ord(name[0]) + number))
    return tmp_path / "root"


@pytest.fixture(name="read")
def read_fixture(root: Path, tmp_path: Path) -> Callable[..., ImageFolder]:
    """Without a word of warning."""

    def call(size: int = 12, **options: object) -> ImageFolder:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return image_folder(root, size, **{"cache": tmp_path / "cache"} | options)

    return call


def refusal(read: Callable[..., ImageFolder], **options: object) -> str:
    with pytest.raises(ValueError) as raised:
        read(**options)
    said = str(raised.value)
    assert re.match("image_folder: .* must .*, got ", said) and "\n" not in said and "object at" not in said, said
    return said

"""Images of one's own: a folder of class folders."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from . import _cache, _check, _squares


class ImageFolder(NamedTuple):
    """Images of classes that need not have equally many.

    `images`: `[n, channels, size, size]`, uint8, class after class. `classes`: their names. `counts`: how many images each has.

    `sample_episodes(folder.images, ..., counts=folder.counts)` draws tasks of them.
    """

    images: Tensor
    classes: list[str]
    counts: list[int]

    def split(self, classes: int) -> tuple[ImageFolder, ImageFolder]:
        """The first so many classes, and the others, as views. Errors: ValueError where one of the two would have none."""
        op = "ImageFolder.split"
        cut = _check.whole(op, "classes", classes, 1, len(self.classes) - 1)
        first, others = self.images.tensor_split([sum(self.counts[:cut])])
        return (
            ImageFolder(first, self.classes[:cut], self.counts[:cut]),
            ImageFolder(others, self.classes[cut:], self.counts[cut:]),
        )

    def to(self, device: torch.device | str) -> ImageFolder:
        """The same images on `device`."""
        return self._replace(images=self.images.to(_check.device("ImageFolder.to", device)))


def image_folder(
    root: str | os.PathLike[str],
    size: int,
    *,
    channels: int = 3,
    classes: str | os.PathLike[str] | Sequence[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> ImageFolder:
    """The images `<root>/<class>/<file>` as squares of `size` pixels: the shorter side is scaled to it, the middle of the longer kept.

    `channels`: 3: RGB, 1: grey.
    `classes`: the names of the class folders to keep, in their order, or a text file of them, one a line; None: all, sorted.
    `cache`: the folder that keeps the result (`$XDG_CACHE_HOME/fastmeta`, or `~/.cache/fastmeta`). It holds one file for each
    root, size, channels and classes, with a checksum of its pixels and of every image's name, size and time of change: once
    something changes, or the file is damaged, it is made anew.

    Classes and files are sorted by name, character by character (`10` comes before `2`). Images are files named .png, .jpg, .jpeg,
    .webp, .bmp, .gif, .tif, .tiff, .ppm or .pgm. Other files in a class folder are left out with a warning; what begins with a
    dot, and other files beside the class folders, without one. Links are followed. A photograph is turned as its EXIF
    says, white shows through what is transparent, an animation gives its first frame. Scaling is antialiased and bilinear.

    From 256 MiB on the images are not read but mapped: the system loads what is drawn, the processes of a machine share it,
    and it may be larger than the memory. Either way the file is read once for its checksum. It may be deleted while it is in use;
    cut short by hand, it ends a process that has mapped it.

    Errors: FileNotFoundError where root is no folder; OSError where a folder cannot be read; TypeError for arguments of other
    types; ValueError, which names the files, at most ten and how many:

    - for images that Pillow cannot read or finds cut, or that have 16 bits a channel in grey, and for broken links;
    - for images beside the class folders, folders inside of them, a class folder without images, no or an unknown class.

    A cache that cannot be written gives a warning. Needs pillow: `pip install fastmeta[data]`.

    ```python
    # not run: needs a folder of images
    from fastmeta.data import TaskSampler, image_folder, sample_episodes

    training, test = image_folder("flowers", size=84).split(80)


    def draw(count, generator):
        return sample_episodes(
            *(training.images, count, 5, 1, 15),
            counts=training.counts,
            generator=generator,
        )


    sampler = TaskSampler(draw, tasks=4)
    ```
    """
    op = "image_folder"
    root = _check.path(op, "root", root)
    (size,) = _check.positive(op, size=size)
    channels = _check.whole(op, "channels", channels)
    if channels not in (1, 3):
        raise ValueError(f"{op}: channels must be 1 or 3, got {_check.said(channels)}")
    _check.room(op, "size", channels * size * size)
    wanted = None if classes is None else _check.listed(op, "classes", classes)
    if wanted is not None:
        _check.once(op, "classes", wanted)
    folder = _cache.default() if cache is None else _check.path(op, "cache", cache)
    version = _squares.version(op)
    found = _scan(op, root, wanted)
    key = hashlib.sha256(os.fsencode("\0".join([os.path.realpath(root), *(wanted or [])]))).hexdigest()[:16]
    path = folder / f"images-{size}px-{channels}c-{key}.bin"
    images = _pixels(op, path, found, version, size, channels)
    return ImageFolder(images, list(found), [len(entries) for entries in found.values()])


class _Entry(NamedTuple):
    """Of a folder."""

    path: str
    mode: int  # 0 where a link leads nowhere
    changed: str  # size and time of change

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def is_image(self) -> bool:
        return self.path.lower().endswith(_squares.SUFFIXES)


def _pixels(op: str, path: Path, found: dict[str, list[_Entry]], version: str, size: int, channels: int) -> Tensor:
    """[n, channels, size, size], from the cache's file, which is made first, or without one where it cannot be written."""
    files = [entry.path for entries in found.values() for entry in entries]
    shape = [len(files), channels, size, size]
    recipe = _recipe(f"{version} {size} {channels}", found)
    images = _cache.load(path, recipe, shape)
    if images is None:
        images = _cache.save(op, path, recipe, shape, lambda: _squares.squares(op, files, size, channels))
    if images is None:
        images = torch.empty(shape, dtype=torch.uint8, device="cpu")
        parts = images.split(_squares.AT_ONCE)
        for part, pixels in zip(parts, _squares.squares(op, files, size, channels), strict=True):
            part.copy_(torch.frombuffer(pixels, dtype=torch.uint8).view(part.shape))
    return images


def _recipe(made_by: str, found: dict[str, list[_Entry]]) -> bytes:
    """What the pixels depend on."""
    files = ((name, file.name, file.changed) for name, files in found.items() for file in files)
    return os.fsencode("\0".join([made_by, *itertools.chain.from_iterable(files)]))


def _scan(op: str, root: Path, wanted: list[str] | None) -> dict[str, list[_Entry]]:
    """The image files of each class folder, all sorted, or of the wanted ones in their order."""
    if not os.path.isdir(root):
        raise FileNotFoundError(f"{op}: root must be a folder of class folders, got no folder {root}")
    beside = _entries(op, root)
    folders = {entry.name: entry for entry in beside if stat.S_ISDIR(entry.mode)}
    _none(op, "images must be in class folders", [e for e in beside if stat.S_ISREG(e.mode) and e.is_image])
    _none(op, "links must lead to something", [e for e in beside if not e.mode])
    if not folders:
        raise ValueError(f"{op}: root must hold class folders, got none in {root}")
    for name in wanted or []:
        if name not in folders:
            raise ValueError(f"{op}: classes must be folders of {root}, got {name!r}")
    held = {name: _entries(op, folders[name].path) for name in (folders if wanted is None else wanted)}
    every = [entry for entries in held.values() for entry in entries]
    _none(op, "a class folder must hold no folders", [e for e in every if stat.S_ISDIR(e.mode)])
    _none(op, "images must be files", [e for e in every if not stat.S_ISREG(e.mode)])
    found = {name: [entry for entry in entries if entry.is_image] for name, entries in held.items()}
    _none(op, "a class folder must hold images", [folders[name] for name, files in found.items() if not files])
    others = [e.path for e in every if not e.is_image]
    if others:
        said = f"{op}: images must be named as such, got {len(others)} other files, left out: {_squares.listed(others)}"
        warnings.warn(said, stacklevel=3)
    return found


def _entries(op: str, folder: str | Path) -> list[_Entry]:
    """What is in a folder, hidden files left out, sorted."""
    found = []
    try:
        for name in sorted(os.listdir(folder)):
            if not name.startswith("."):
                path = os.path.join(folder, name)
                try:
                    status = os.stat(path)
                    found.append(_Entry(path, status.st_mode, f"{status.st_size} {status.st_mtime_ns}"))
                except OSError:
                    found.append(_Entry(path, 0, ""))
    except OSError as error:
        raise type(error)(f"{op}: a folder must be readable, got {error}") from error
    return found


def _none(op: str, must: str, wrong: list[_Entry]) -> None:
    if wrong:
        raise ValueError(f"{op}: {must}, got {len(wrong)}: {_squares.listed([e.path for e in wrong])}")

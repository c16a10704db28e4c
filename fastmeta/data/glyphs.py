"""Glyphs: printed letters of many scripts as a few-shot problem that needs no download."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import _cache, _check, _fonts

_ANGLE, _SHEAR, _SHIFT = math.radians(12), 0.15, 0.05  # radians, a ratio, a fraction of the side
_SCALE = (0.8, 1.1)
_FILL = 0.7  # of the side: the longer side of a letter before the jitter
_GRID = 84  # pixels a side, at least: letters are sampled on such a grid and averaged down, against aliasing
_CHUNK = 256  # images warped at a time


class Glyphs:
    """Letters in the faces of matplotlib's fonts, each example turned, stretched, sheared and shifted a little.

    `split`: "train" (Latin, Greek, Cyrillic, Arabic, Lao, Tifinagh, Canadian Aboriginal) or "test" (Hebrew,
    N'Ko, Georgian, Armenian). No script is in both, and letters that look alike appear once in the two together.
    `size`: pixels a side.
    `examples`: images a class.
    `seed`: of the jitter, which is the same bit for bit at every run.
    `cache`: the folder that keeps the result (`$XDG_CACHE_HOME/fastmeta`, or `~/.cache/fastmeta`). It holds one file for
    each size, examples and seed, with a checksum of all that is in it. A broken or outdated file is made anew.

    The attribute `images` is `[classes, examples, 1, size, size]`, uint8, ink 255 on 0 (`sample_episodes` makes it 1 on 0);
    `characters` is the (script, character) of each class.

    The examples of a class take its faces in turn, then x' = R(a) [[sx, h], [0, sy]] x + t about the centre: a within
    12 degrees, sx and sy in [0.8, 1.1], h within 0.15, t within 5 % of the side in x and in y, all uniform.

    Errors: ValueError for another split, for size or examples below 1, for a seed outside [-2**63, 2**64); TypeError where
    they are no int, or the cache no path; FileNotFoundError for a missing font. A cache that cannot be written gives a
    warning. Needs matplotlib and pillow: `pip install fastmeta[data]`.

    Source: ours; after Lake et al. 2015's rule that alphabets, and not only characters, are new at test time.
    """

    images: Tensor
    characters: list[tuple[str, str]]

    def __init__(
        self,
        split: str,
        *,
        size: int = 28,
        examples: int = 20,
        seed: int = 0,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        op = "Glyphs"
        if not isinstance(split, str) or split not in _fonts.SCRIPTS:
            raise ValueError(f"{op}: split must be 'train' or 'test', got {split!r}")
        size, examples = _check.positive(op, size=size, examples=examples)
        _check.room(op, "size and examples", size * size * examples)
        seed = _check.whole(op, "seed", seed, -(2**63), 2**64 - 1)
        folder = _cache.default() if cache is None else _check.path(op, "cache", cache)
        path = folder / f"glyphs-{size}px-{examples}x-seed{seed}.npz"
        recipe = f"{_recipe()} {size} {examples} {seed}"
        arrays = _load(path, recipe)
        if arrays is None:
            arrays = _build(size, examples, seed)
            _save(path, arrays, recipe)
        self.images = torch.from_numpy(arrays[f"{split}_images"])
        self.characters = [(script, character) for script, character in arrays[f"{split}_characters"].tolist()]


def _recipe() -> str:
    """What the images depend on besides size, examples and seed: this code and the fonts."""
    sources = b"".join(Path(file).read_bytes() for file in (__file__, _fonts.__file__))
    return f"{zlib.crc32(sources):08x} {_fonts.version()}"


def _seal(arrays: dict[str, np.ndarray], recipe: str) -> str:
    """Of a recipe and of all that was made by it: names, types, shapes and values."""
    digest = hashlib.sha256(recipe.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _load(path: Path, recipe: str) -> dict[str, np.ndarray] | None:
    """The arrays of a cache file as they were saved for this recipe, else None."""
    if not os.path.isfile(path):
        return None
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = dict(file)
        return arrays if str(arrays.pop("seal")) == _seal(arrays, recipe) else None
    except Exception:  # whatever numpy, zipfile and zlib come upon in a broken file
        return None


def _save(path: Path, arrays: dict[str, Any], recipe: str) -> None:
    """Writes into a folder beside it, then renames: a reader never sees half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            part = Path(scratch, path.name)
            np.savez(part, **arrays, seal=np.array(_seal(arrays, recipe)))
            part.replace(path)
    except OSError as error:
        warnings.warn(f"Glyphs: the cache must be writable, got {error}; it is built anew each time", stacklevel=3)


def _build(size: int, examples: int, seed: int) -> dict[str, np.ndarray]:
    letters, masters, starts = _fonts.masters()
    faces = starts.diff()[:, None]
    rows = (
        starts[:-1, None] + torch.arange(examples, device="cpu") % faces
    )  # [L, examples]: the faces of a letter in turn
    images = _warp(masters, rows.flatten(), size, seed).unflatten(0, (len(letters), examples))
    arrays = {}
    for split in _fonts.SCRIPTS:
        chosen = [i for i, letter in enumerate(letters) if letter.split == split]
        arrays[f"{split}_images"] = images[chosen].numpy()
        arrays[f"{split}_characters"] = np.array([letters[i][1:] for i in chosen])
    return arrays


def _warp(masters: Tensor, rows: Tensor, size: int, seed: int) -> Tensor:
    """masters[rows] under random affine maps: uint8 [G, SIDE, SIDE], int64 [n] -> uint8 [n, 1, size, size]."""
    fine = math.ceil(_GRID / size)
    maps = _maps(len(rows), torch.Generator().manual_seed(seed))
    warped = []
    for chunk, matrices in zip(rows.split(_CHUNK), maps.split(_CHUNK), strict=True):
        grid = F.affine_grid(matrices, [len(chunk), 1, fine * size, fine * size], align_corners=False)
        sampled = F.grid_sample(masters[chunk, None].float(), grid, align_corners=False)
        warped.append(F.avg_pool2d(sampled, fine).round_().to(torch.uint8))
    return torch.cat(warped)


def _maps(count: int, generator: torch.Generator) -> Tensor:
    """[count, 2, 3]: the inverses of the maps in `Glyphs`, from an image's [-1, 1] to a master's [-1, 1]."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, device="cpu", dtype=torch.float32)

    angle, shear = uniform(-_ANGLE, _ANGLE), uniform(-_SHEAR, _SHEAR)
    sx, sy = uniform(*_SCALE), uniform(*_SCALE)
    shift = torch.stack([uniform(-2 * _SHIFT, 2 * _SHIFT), uniform(-2 * _SHIFT, 2 * _SHIFT)], dim=-1)[..., None]
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1).view(count, 2, 2)
    stretch = torch.stack([sx, shear, torch.zeros_like(sx), sy], dim=-1).view(count, 2, 2)
    inverse = torch.linalg.inv(turn @ stretch)
    return torch.cat([inverse, -inverse @ shift], dim=-1) / _FILL

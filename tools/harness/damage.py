"""Files as a disk, a network or a hand may leave them: `mutate` damages bytes, and each of TARGETS checks what then reads them.

A target is made once in a folder; each call damages its file by a random generator, and tells "refused" or "same". AssertionError where
the reader raises what is not documented, does not name the file, or takes a damaged file for another sound one.
"""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from fastmeta.data import Omniglot, glyphs
from harness.archives import characters, write

Attack = Callable[[random.Random], str]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Not `data`: one to three changes at random places."""
    changed = data
    while changed == data:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            changed = _changed(changed, rng)
    return changed


def _changed(data: bytes, rng: random.Random) -> bytes:
    """Mostly short spans; some begin at the file's end, where a zip has its index."""
    length = min(len(data), rng.choice((1, 2, 4, rng.randint(1, 64), rng.randint(1, len(data) + 1))))
    start = rng.randint(0, len(data) - length) if rng.random() < 0.7 else len(data) - length
    before, span, after = data[:start], data[start : start + length], data[start + length :]
    match rng.randrange(8):
        case 0 | 1:
            return before + bytes(b ^ 1 << rng.randrange(8) for b in span[:1]) + span[1:] + after
        case 2:
            return before + rng.choice((b"\0", b"\xff", b" ")) * length + after
        case 3:
            return before + rng.randbytes(length) + after
        case 4:
            return before + after
        case 5:
            return data[:start] if rng.random() < 0.8 else data[start:]
        case 6:
            return before + rng.choice((rng.randbytes(rng.randint(1, 64)), span)) + span + after
        case _:
            return after + span + before


def same(a: Any, b: Any) -> bool:
    """Whether two values hold the same, bit by bit."""
    if isinstance(a, torch.Tensor | np.ndarray):
        return type(a) is type(b) and (a.dtype, a.shape) == (b.dtype, b.shape) and bool((a == b).all())
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))  # NaN is the same as NaN


def attack(
    path: Path, read: Callable[[], Any], rng: random.Random, damage: Callable[[bytes], bytes] | None = None
) -> str:
    """`read` gives what it gave before, or refuses the file by its name in one line; the file is then as it was."""
    sound, expected = path.read_bytes(), read()
    path.write_bytes((damage or (lambda data: mutate(data, rng)))(sound))
    try:
        found = read()
    except ValueError as error:
        said = str(error)
        assert str(path) in said and " must " in said and ", got " in said and "object at" not in said, said
        return "refused"
    finally:
        path.write_bytes(sound)
    assert same(found, expected), "a damaged file was taken for another sound one"
    return "same"


def archive(folder: Path) -> Attack:
    path = write(folder, "small", characters("small", {"Runes": 2}))

    def read() -> Any:
        data = Omniglot(folder, "small")
        return data.images, data.characters, data.alphabets

    return lambda rng: attack(path, read, rng)


def drawing(folder: Path) -> Attack:
    """The damage is in a drawing, and the archive's own checksums are right."""
    members = characters("small", {"Runes": 1})
    path = write(folder, "small", members)

    def damage(rng: random.Random) -> bytes:
        name = rng.choice(list(members))
        with zipfile.ZipFile(path, "w") as file:
            for other, data in members.items():
                file.writestr(other, mutate(data, rng) if other == name else data)
        return path.read_bytes()

    return lambda rng: attack(path, lambda: Omniglot(folder, "small").images, rng, lambda _: damage(rng))


def cache(folder: Path) -> Attack:
    """What is refused is made anew."""
    path, recipe = folder / "glyphs.npz", "a recipe"
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 1, 8, 8), np.uint8)
    glyphs._save(path, {"train_images": images, "train_characters": np.array([("Latin", c) for c in "ABC"])}, recipe)

    def read() -> Any:
        found = glyphs._load(path, recipe)
        if found is None:
            raise ValueError(f"{path} must be sound, got None")
        return found

    return lambda rng: attack(path, read, rng)


TARGETS: dict[str, Callable[[Path], Attack]] = {"archive": archive, "drawing": drawing, "cache": cache}


def training(folder: Path, train: ModuleType) -> dict[str, Attack]:
    """The files of a training by examples/train.py, whose module is given: the checkpoint, the best learner, the log."""
    words = ["--learner", "maml", "--data", "sinusoid", "--out", str(folder), "--resume"]
    args = train.options().parse_args([*words, "--steps", "4", "--every", "2", "--eval-tasks", "4"])
    train.main(args)
    run = train.Training(args, train.problem.load(args))
    checkpoint, best, log = (folder / name for name in ("checkpoint.pt", "best.pt", "log.csv"))
    train.resume(run, args)

    def state() -> Any:
        found = train.persist.load(checkpoint)
        run.check(found, checkpoint)
        return found

    def learner() -> Any:
        found = train.best_of(folder)
        train.checkpoint.fits(best, "learner", run.learner.state_dict(), found)
        return found

    return {
        "checkpoint": lambda rng: attack(checkpoint, state, rng),
        "best": lambda rng: attack(best, learner, rng),
        "log": lambda rng: attack(log, lambda: train.persist.kept(log, run.log), rng),
    }

"""The runs of Lake et al. 2015 from their archive, and what a learner mistakes in them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import learners
import torch
from common import Learner
from torch import Tensor

from fastmeta.data import Episodes, _drawings

LABELS, CLASSES = "class_labels.txt", 20


def load(path: Path) -> dict[str, Episodes]:
    """Each run as one task: support [1, 20, 1, 28, 28], the classes; query, the new drawings, with the classes' numbers."""
    with _drawings.archive(path, "--runs", "--runs") as file:
        names = sorted(name for name in file.members if PurePosixPath(name).name == LABELS)
        found = {PurePosixPath(name).parent.name: _run(path, file, PurePosixPath(name)) for name in names}
    if not found:
        raise ValueError(f"--runs must hold runNN/{LABELS}, got none in {path}")
    if len(found) != len(names):
        raise ValueError(f"--runs must hold every run once, got {len(names)} of {len(found)} names in {path}")
    return found


def _run(path: Path, file: _drawings.Archive, labels: PurePosixPath) -> Episodes:
    root = labels.parent.parent  # what the names in the file are relative to
    text = file.read(str(labels)).decode(errors="replace")
    pairs = [line.split() for line in text.splitlines() if line.strip()]
    items, answers = ([pair[side] for pair in pairs if len(pair) == 2] for side in (0, 1))
    if not len(pairs) == len({*items}) == len({*answers}) == CLASSES:
        raise ValueError(
            f"--runs must pair {CLASSES} drawings with {CLASSES} classes, got something else in {labels} of {path}"
        )
    classes = sorted(answers)
    drawn = [[str(root / name) for name in names] for names in (classes, items)]
    for name in (*drawn[0], *drawn[1]):
        if name not in file.members:
            raise ValueError(f"--runs must hold every drawing of {labels}, got none: {name} of {path}")
    support, query = (_drawings.scaled(file.drawings(names), learners.SIDE).float() / 255 for names in drawn)
    numbers = torch.tensor([classes.index(answer) for answer in answers])
    return Episodes(support[None], torch.arange(CLASSES)[None], query[None], numbers[None])


@torch.no_grad()
def errors(learner: Learner, runs: dict[str, Episodes]) -> Tensor:
    """The wrong answers of each run in percent, [runs]."""
    learner.eval()
    wrong = [(learner(*tasks[:3]).argmax(-1) != tasks.query_y).float().mean() for tasks in runs.values()]
    return 100 * torch.stack(wrong)


@torch.no_grad()
def mistaken(learner: Learner, runs: dict[str, Episodes], most: int) -> list[dict[str, Any]]:
    """At most so many new drawings that are taken for another class, one of each run before a second: "drawn", and the one example of
    the class that it "is" and of the one it is "taken" for, each as the hexadecimal digits of SIDE x SIDE bits."""
    learner.eval()
    found = []
    for name, tasks in runs.items():
        answers = learner(*tasks[:3]).argmax(-1)[0].tolist()
        wrong = [(item, answer) for item, answer in enumerate(answers) if answer != tasks.query_y[0, item].item()]
        for place, (item, answer) in enumerate(wrong):
            images = tasks.query_x[0, item], *(tasks.support_x[0, way] for way in (tasks.query_y[0, item], answer))
            pictures = dict(zip(("drawn", "is", "taken"), map(bits, images), strict=True))
            found.append((place, {"run": name, **pictures}))
    return [row for _, row in sorted(found, key=lambda row: row[0])[:most]]


def bits(image: Tensor) -> str:
    """Ink or none: [1, h, w] -> its digits, each of four pixels."""
    ink = "".join("01"[int(pixel)] for pixel in (image > 0.4).flatten().tolist())
    return f"{int(ink, 2):0{len(ink) // 4}x}"


def pixels(digits: str) -> Tensor:
    """`bits` undone, [h, w]."""
    side = int((4 * len(digits)) ** 0.5)
    return torch.tensor([int(bit) for bit in f"{int(digits, 16):0{4 * len(digits)}b}"]).view(side, side)

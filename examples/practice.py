"""What few-shot practice knows for Lake's runs, as a recipe of ProtoNet: lake_table.py chooses among these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import learners
import recipes
import strokes
import torch
from common import Learner
from torch import Tensor

import fastmeta
from fastmeta.data import Episodes, Omniglot, sample_episodes
from fastmeta.types import Draw

COSINE = {"metric": "cosine", "temperature": 0.1}


class Practice(NamedTuple):
    """`within`: the share of episodes whose characters are of one alphabet, in one turn, as a run's are. Each is one shot of `ways`."""

    hidden: int = 32
    metric: str = "sqeuclidean"
    temperature: float = 1.0
    jitter: float = 0.0
    thickness: float = 0.0
    within: float = 0.5
    ways: int = 20
    lr: float = 5e-3


REDRAWN = {"jitter": 0.5, "thickness": 0.3}
CANDIDATES = [
    Practice(within=0.0), Practice(), Practice(within=0.9), Practice(**REDRAWN), Practice(within=0.9, **REDRAWN),
    Practice(jitter=1.0, thickness=0.5), Practice(**COSINE, **REDRAWN), Practice(64, **REDRAWN), Practice(ways=40, **REDRAWN),
]  # fmt: skip


class Drawings(NamedTuple):
    images: Tensor  # [classes, 20, 1, h, w], with their turns
    groups: list[Tensor]  # the classes of each alphabet in each turn


def drawings(root: str, trained: str, without: str | None) -> Drawings:
    """Of small1, small2 or both; Latin and Greek, which are in both archives, once."""
    images, names = [], list[str]()
    for archive in ("small1", "small2") if trained == "both" else (trained,):
        data = Omniglot(root, f"images_background_{archive}", rotations=True, size=learners.SIDE)
        left_out = {without, *(("Greek", "Latin") if trained == "both" and archive == "small2" else ())}
        kept = [alphabet not in left_out for alphabet, _ in data.characters]
        images.append(data.images[torch.tensor(kept)])
        of_class = [f"{alphabet}/{character.partition('/')[2]}" for alphabet, character in data.characters]
        names += [name for name, keep in zip(of_class, kept, strict=True) if keep]
    groups = [torch.tensor([i for i, other in enumerate(names) if other == name]) for name in dict.fromkeys(names)]
    return Drawings(torch.cat(images), groups)


def episodes(data: Drawings, practice: Practice) -> Draw:
    """For a TaskSampler of one task at a time; torch's generator says which are within an alphabet, and draws the jitter."""

    def draw(count: int, generator: Any) -> Episodes:
        images = data.images
        if torch.rand(()) < practice.within:
            images = images[data.groups[int(torch.randint(len(data.groups), ()))]]
        tasks = sample_episodes(images, count, min(practice.ways, len(images)), 1, recipes.QUERIES, generator=generator)
        redrawn = (as_others_draw(x, practice) for x in (tasks.support_x, tasks.query_x))
        return Episodes(next(redrawn), tasks.support_y, next(redrawn), tasks.query_y)

    return draw


def as_others_draw(images: Tensor, practice: Practice) -> Tensor:
    """[T, n, 1, h, w]"""
    moved = strokes.jittered(images.flatten(0, 1), practice.jitter)
    return strokes.redrawn(moved, practice.thickness).unflatten(0, images.shape[:2])


def build(practice: Practice) -> Learner:
    encoder, _ = learners.network("conv4", ways=1, hidden=practice.hidden, running_statistics=True)
    return fastmeta.ProtoNet(encoder, metric=practice.metric, temperature=practice.temperature)


def seen(learner: Any, practice: Practice | None, views: int) -> Learner:
    """The learner that embeds by so many views of a drawing."""
    if practice is None or views == 1:
        return learner
    encoder = strokes.Views(learner.encoder, views, max(practice.jitter, 0.5) / 2)
    return fastmeta.ProtoNet(encoder, metric=practice.metric, temperature=practice.temperature)


def made_runs(images: Tensor, count: int, characters: int) -> dict[str, Episodes]:
    """Like Lake's: so many characters of an alphabet's [C, 20, 1, h, w], drawn by one person, and the same by another."""
    generator, made = torch.Generator().manual_seed(0), {}
    for number in range(count):
        chosen = torch.randperm(len(images), generator=generator)[:characters]
        drawers: Sequence[Tensor] = torch.randperm(images.shape[1], generator=generator)[:2].unbind()
        support, query = (images[chosen, drawer].float()[None] / 255 for drawer in drawers)
        numbers = torch.arange(len(chosen))[None]
        made[f"made{number:02}"] = Episodes(support, numbers, query, numbers)
    return made

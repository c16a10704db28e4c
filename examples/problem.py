"""What train.py trains on: the tasks of each split, and the learner of its options."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import few_shot
import learners
from common import Learner
from torch import Tensor

from fastmeta.data import Episodes, Sinusoid, sample_episodes
from fastmeta.data.task_sampler import Draw

DEFAULTS = {  # of the options that are None
    "sinusoid": {"shots": 10, "queries": 10, "inner_lr": 0.01},
    "glyphs": {"shots": 1, "queries": 5, "inner_lr": 0.4},
    "omniglot": {"shots": 1, "queries": 5, "inner_lr": 0.4},
}


def settle(args: argparse.Namespace) -> None:
    """Fill in the options that depend on the data."""
    if args.data == "sinusoid" and args.learner not in learners.OF_SINUSOIDS:
        raise ValueError(
            f"--data sinusoid is a regression, for {', '.join(learners.OF_SINUSOIDS)}, got --learner {args.learner}"
        )
    for name, value in DEFAULTS[args.data].items():
        if getattr(args, name) is None:
            setattr(args, name, value)


class Data(NamedTuple):
    training: Draw
    validation: Draw
    test: Draw


def load(args: argparse.Namespace) -> Data:
    """Sinusoids are all of one kind; of the images a tenth of the training classes, the last, is for validation."""
    if args.data == "sinusoid":
        sinusoids = Sinusoid()

        def draw(tasks: int, generator: Any) -> Episodes:
            return sinusoids.sample(tasks, args.shots, args.queries, generator=generator, device=args.device)

        return Data(draw, draw, draw)
    training, test = few_shot.load(args)
    turns = training.unflatten(0, (4 if args.data == "omniglot" else 1, -1))  # a class and its rotations stay together
    cut = turns.shape[1] - turns.shape[1] // 10
    return Data(*(drawn_from(images, args) for images in (turns[:, :cut].flatten(0, 1), turns[0, cut:], test)))


def drawn_from(images: Tensor, args: argparse.Namespace) -> Draw:
    return lambda tasks, generator: sample_episodes(
        images, tasks, args.ways, args.shots, args.queries, generator=generator
    )


def build(args: argparse.Namespace) -> Learner:
    model = "sinusoid" if args.data == "sinusoid" else args.model
    options = {"hidden": args.hidden, "inner_lr": args.inner_lr, "inner_steps": args.inner_steps}
    return learners.build(args.learner, ways=args.ways, model=model, **options)

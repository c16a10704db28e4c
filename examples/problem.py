"""What train.py trains on: the tasks of each split, and the learner of its options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import few_shot
import learners
from common import Learner
from torch import Tensor

from fastmeta.data import Episodes, ImageFolder, Sinusoid, image_folder, sample_episodes
from fastmeta.data.task_sampler import Draw

DEFAULTS = {  # of the options that are None
    "sinusoid": {"shots": 10, "queries": 10, "inner_lr": 0.01},
    "glyphs": {"shots": 1, "queries": 5, "inner_lr": 0.4, "size": learners.SIDE, "channels": 1},
    "omniglot": {"shots": 1, "queries": 5, "inner_lr": 0.4, "size": learners.SIDE, "channels": 1},
    "folder": {"shots": 1, "queries": 5, "inner_lr": 0.4, "size": 84, "channels": 3},
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
    if args.data != "folder" and args.channels == 3:
        raise ValueError(f"--channels 3 must come with --data folder, got {args.data}")
    if args.data != "sinusoid" and args.model == "conv4" and args.size < 16:
        raise ValueError(f"--size must be at least 16 for --model conv4, got {args.size}")


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
    if args.data == "folder":
        return Data(*(drawn_from(part.images, args, part.counts) for part in own_images(args)))
    training, test = few_shot.load(args, args.size)
    turns = training.unflatten(0, (4 if args.data == "omniglot" else 1, -1))  # a class and its rotations stay together
    cut = turns.shape[1] - turns.shape[1] // 10
    return Data(*(drawn_from(images, args) for images in (turns[:, :cut].flatten(0, 1), turns[0, cut:], test)))


def own_images(args: argparse.Namespace) -> tuple[ImageFolder, ImageFolder, ImageFolder]:
    """Training, validation and test: without files of classes the last fifth by name is the test's, at least --ways."""
    if args.root is None:
        raise ValueError("--data folder needs --root DIR, the folder of the class folders")

    def read(classes: str | None = None) -> ImageFolder:
        return image_folder(args.root, args.size, channels=args.channels, classes=classes)

    def last(of: ImageFolder, share: int, parts: int) -> tuple[ImageFolder, ImageFolder]:
        found = len(of.classes)
        if found < parts * args.ways:
            raise ValueError(
                f"--root must hold at least --ways {args.ways} classes for each of {parts} parts, got {found}"
            )
        return of.split(found - max(args.ways, found // share))

    if args.train_classes or args.test_classes:
        training, test = map(read, few_shot.class_files(args))
        few_shot.new({*training.classes} & {*test.classes})
    else:
        training, test = last(read(), 5, 3)
    training, validation = last(training, 10, 2)
    for part in (training, validation, test):
        fewest, name = min(zip(part.counts, part.classes, strict=True))
        if fewest < (drawn := args.shots + args.queries):
            raise ValueError(f"--shots + --queries must be at most the {fewest} images of {name}, got {drawn}")
    return tuple(part.to(args.device) for part in (training, validation, test))


def drawn_from(images: Tensor, args: argparse.Namespace, counts: Sequence[int] | None = None) -> Draw:
    return lambda tasks, generator: sample_episodes(
        images, tasks, args.ways, args.shots, args.queries, counts=counts, generator=generator
    )


def build(args: argparse.Namespace) -> Learner:
    model = "sinusoid" if args.data == "sinusoid" else args.model
    options = {"hidden": args.hidden, "inner_lr": args.inner_lr, "inner_steps": args.inner_steps}
    if args.data != "sinusoid":
        options |= {"size": args.size, "channels": args.channels}
    return learners.build(args.learner, ways=args.ways, model=model, **options)

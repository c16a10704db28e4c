"""Omniglot by any learner: trained on the 136 characters of images_background_small1, with rotations, tested on the three alphabets
that only images_background_small2 has.

What comes of it goes into the file --results; reproductions.py makes tables and pictures of such files. The defaults of a learner
are its recipe below. Adam's rate falls to 0 along a cosine.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any, NamedTuple

import checkpoint
import few_shot
import learners
import persist
import records
import torch
from common import Estimate, Learner, Sample, adam, arguments, count, meta_step, print_table, run
from tqdm import trange

ARCHIVES = {"train_archive": "images_background_small1", "test_archive": "images_background_small2"}
UNSEEN = ["Japanese_(katakana)", "Sanskrit", "Tagalog"]
QUERIES = 5  # images of a class, in training and test


class Recipe(NamedTuple):
    """What a learner is trained with where the options do not say."""

    tasks: int = 8  # of a meta-iteration
    steps: int = 1000  # meta-iterations
    lr: float = 5e-3  # Adam's, at the start
    inner_lr: float = 0.4
    inner_steps: int = 1
    test_steps: int | None = None  # inner steps of the test; None: as in training
    ways: int | None = None  # None: as in the test
    shots: int | None = None  # None: as in the test
    options: dict[str, Any] = {}  # noqa: RUF012 - of the learner


OF_RECIPE = ("tasks", "steps", "lr", "inner_lr", "inner_steps", "test_steps")  # what options change
RECIPES = {
    "protonet": Recipe(tasks=1, steps=1500, lr=2e-3, ways=20),
    "matching-net": Recipe(tasks=1, lr=2e-3, ways=20, options={"temperature": 0.1}),
    "matching-net-fce": Recipe(tasks=1, lr=2e-3, ways=20, options={"temperature": 0.1}),
    "maml": Recipe(),
    "meta-sgd": Recipe(),
    "anil": Recipe(steps=200, inner_steps=5),
    "proto-maml": Recipe(tasks=4, steps=200, inner_lr=0.1),
    "reptile": Recipe(2, 100, inner_lr=3e-3, inner_steps=5, test_steps=10, shots=10, options={"optimiser": "adam"}),
    "imaml": Recipe(tasks=2, steps=150, lr=2e-3, inner_lr=0.01, inner_steps=16),
    "leo": Recipe(tasks=4, steps=600, lr=0.01),
}


class Trained(NamedTuple):
    learner: Learner
    settings: dict[str, Any]  # what `build` takes
    recipe: Recipe
    seconds: float  # processor time of the training


def build(settings: dict[str, Any]) -> Learner:
    """`settings`: what `learners.build` takes; `embedding` are those of a network whose encoder LEO is to embed with."""
    known = dict(settings)
    if "embedding" in known:
        known["embedding"] = build(known["embedding"]).encoder
    return learners.build(**known)


def load(path: Path) -> tuple[Learner, dict[str, Any]]:
    """A learner that --save wrote, and its settings."""
    found = persist.load(path)
    checkpoint.keys(path, "a learner", found, ("settings", "state"))
    settings = found["settings"]
    try:
        if (
            not {settings["learner"], settings.get("embedding", settings)["learner"]} <= {*RECIPES}
            or settings["ways"] < 1
        ):
            raise ValueError("an unknown learner")
        learner = build(settings)
    except Exception as error:  # whatever other settings come upon
        raise ValueError(f"{path} must hold the settings of a learner that --save wrote, got {settings}") from error
    checkpoint.fits(path, "state", learner.state_dict(), found["state"])
    learner.load_state_dict(found["state"])
    return learner, settings


def train(images: torch.Tensor, args: argparse.Namespace) -> Trained:
    recipe = RECIPES[args.learner]
    given = {name: getattr(args, name) for name in OF_RECIPE}
    recipe = recipe._replace(**{name: value for name, value in given.items() if value is not None})
    recipe = recipe._replace(ways=recipe.ways or args.ways[0], shots=recipe.shots or args.shots[0])
    settings = {"learner": args.learner, "ways": recipe.ways, "hidden": args.hidden, **recipe.options,
                "inner_lr": recipe.inner_lr, "inner_steps": recipe.inner_steps}  # fmt: skip
    if args.embedding is not None:
        embedding, settings["embedding"] = load(args.embedding)
        if args.learner != "leo" or settings["embedding"]["learner"] not in learners.METRIC:
            raise ValueError(
                f"--embedding must be a metric learner's, for leo, got a {settings['embedding']['learner']}, for {args.learner}"
            )
    learner = build(settings).to(args.device)
    if args.embedding is not None:
        learner.embedding.load_state_dict(embedding.encoder.state_dict())
    sample = few_shot.sampler(
        images, tasks=recipe.tasks, ways=recipe.ways, shots=recipe.shots, queries=QUERIES, seed=args.seed
    )
    start = time.process_time()
    descend(learner, sample, steps=recipe.steps, lr=recipe.lr)
    return Trained(learner, settings, recipe, time.process_time() - start)


def descend(learner: Learner, sample: Sample, *, steps: int, lr: float) -> None:
    learner.train()
    optimiser = adam(learner, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with trange(steps, desc="training", mininterval=1) as bar:
        for step in bar:
            loss = meta_step(learner, optimiser, sample())
            schedule.step()
            if step % 100 == 0:
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)


def row(args: argparse.Namespace, trained: Trained, ways: int, shots: int, accuracy: Estimate) -> dict[str, Any]:
    """Of the file of results."""
    return {
        "learner": args.learner, "network": f"Conv4-{args.hidden}", "ways": ways, "shots": shots, "seed": args.seed,
        "embedding": trained.settings.get("embedding"), "recipe": trained.recipe._asdict(), "seconds": round(trained.seconds, 1),
        "accuracy": [round(value, 2) for value in accuracy], "episodes": args.eval_tasks,
    }  # fmt: skip


def main(args: argparse.Namespace) -> None:
    if args.learner not in learners.METRIC and len(args.ways) * len(args.shots) > 1:
        raise ValueError(
            f"{args.learner} is trained for one number of ways and of shots, got --ways {args.ways} --shots {args.shots}"
        )
    if args.results:
        records.load(args.results)  # a broken one is told before the training
    training, test = few_shot.load(args)
    trained = train(training, args)
    if args.save:
        persist.save(args.save, {"settings": trained.settings, "state": trained.learner.state_dict()})
    learner, steps = trained.learner, trained.recipe.test_steps
    if steps is not None:
        learner = learners.after(learner, steps)
    lines = []
    for ways, shots in itertools.product(args.ways, args.shots):
        options = {"tasks": args.eval_tasks, "ways": ways, "shots": shots, "queries": QUERIES}
        accuracy = Estimate.of(few_shot.accuracies(learner, test, **options))
        lines.append([f"{ways}", f"{shots}", f"{accuracy:.1f} %"])
        if args.results:
            records.add(args.results, row(args, trained, ways, shots, accuracy))
    episodes = trained.recipe.tasks * trained.recipe.steps
    print(f"\n{args.learner}, {episodes} training episodes in {trained.seconds:.0f} s of processor time")
    print_table(["ways", "shots", f"accuracy on {args.eval_tasks} unseen episodes (95 % CI)"], lines)


def training_options(description: str | None) -> argparse.ArgumentParser:
    """What lake.py has too."""
    parser = arguments(description, steps=None)
    few_shot.data_arguments(parser)
    parser.set_defaults(data="omniglot", test_alphabets=UNSEEN, **ARCHIVES)
    parser.add_argument("--learner", choices=RECIPES, default="protonet", help="which algorithm")
    parser.add_argument("--hidden", type=count, default=32, help="channels of Conv4 (the papers': 64)")
    parser.add_argument("--embedding", type=Path, help="LEO: the file --save of a metric learner; None: the pixels")
    parser.add_argument("--tasks", type=count, help="tasks of a meta-iteration; None: the recipe's")
    parser.add_argument("--inner-lr", type=float, help="inner learning rate; None: the recipe's")
    parser.add_argument("--inner-steps", type=count, help="inner steps; None: the recipe's")
    parser.add_argument("--test-steps", type=count, help="inner steps of the test; None: the recipe's")
    parser.add_argument("--lr", type=float, help="Adam's learning rate at the start; None: the recipe's")
    parser.add_argument("--results", type=Path, help="file that the figures go into")
    return parser


def options() -> argparse.ArgumentParser:
    parser = training_options(__doc__)
    parser.add_argument("--ways", type=count, nargs="+", default=[5], help="classes of a task; a metric learner: some")
    parser.add_argument("--shots", type=count, nargs="+", default=[1], help="support images of a class; the same")
    parser.add_argument("--eval-tasks", type=count, default=600, help="unseen episodes to evaluate on")
    parser.add_argument("--save", type=Path, help="file to keep the trained learner in")
    return parser


if __name__ == "__main__":
    run(options(), main)

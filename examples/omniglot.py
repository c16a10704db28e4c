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

import few_shot
import learners
import persist
import records
import table
import torch
from common import Estimate, Learner, Sample, adam, arguments, count, meta_step, print_table, run
from recipes import OF_RECIPE, QUERIES, RECIPES, Recipe, build, load, settings
from tqdm import trange

ARCHIVES = {"train_archive": "images_background_small1", "test_archive": "images_background_small2"}
RESULTS = Path(__file__).parent / "results/table.json"  # of --table
UNSEEN = ["Japanese_(katakana)", "Sanskrit", "Tagalog"]


class Trained(NamedTuple):
    learner: Learner
    settings: dict[str, Any]  # what `build` takes
    recipe: Recipe
    seconds: float  # processor time of the training


def train(images: torch.Tensor, args: argparse.Namespace) -> Trained:
    recipe = RECIPES[args.learner]
    given = {name: getattr(args, name) for name in OF_RECIPE}
    recipe = recipe._replace(**{name: value for name, value in given.items() if value is not None})
    recipe = recipe._replace(ways=recipe.ways or args.ways[0], shots=recipe.shots or args.shots[0])
    found = settings(args.learner, recipe, args.hidden)
    if args.embedding is not None:
        embedding, found["embedding"] = load(args.embedding)
        if args.learner != "leo" or found["embedding"]["learner"] not in learners.METRIC:
            raise ValueError(
                f"--embedding must be a metric learner's, for leo, got a {settings['embedding']['learner']}, for {args.learner}"
            )
    learner = build(found).to(args.device)
    if args.embedding is not None:
        learner.embedding.load_state_dict(embedding.encoder.state_dict())
    sample = few_shot.sampler(
        images, tasks=recipe.tasks, ways=recipe.ways, shots=recipe.shots, queries=QUERIES, seed=args.seed
    )
    start = time.process_time()
    descend(learner, sample, steps=recipe.steps, lr=recipe.lr)
    return Trained(learner, found, recipe, time.process_time() - start)


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
    if args.table:
        args.eval_tasks, args.results = args.eval_tasks or 1000, args.results or RESULTS
        return table.main(args)
    args.ways, args.eval_tasks = args.ways or [5], args.eval_tasks or 600
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
    parser.add_argument(
        "--ways", type=count, nargs="+", help="classes of a task, a metric learner: some; None: 5, of --table 5 and 20"
    )
    parser.add_argument("--shots", type=count, nargs="+", default=[1], help="support images of a class; the same")
    parser.add_argument(
        "--eval-tasks", "--episodes", type=count, help="unseen episodes to evaluate on; None: 600, of --table 1000"
    )
    parser.add_argument("--save", type=Path, help="file to keep the trained learner in")
    parser.add_argument("--table", action="store_true", help="all learners, for --budget seconds each: see table.py")
    parser.add_argument(
        "--budget", type=float, default=600.0, help="--table: seconds of processor time of each training"
    )
    parser.add_argument("--only", nargs="+", choices=RECIPES, help="--table: these learners; None: all")
    parser.add_argument("--work", type=Path, default=Path("build/omniglot"), help="--table: folder of the checkpoints")
    return parser


if __name__ == "__main__":
    run(options(), main)

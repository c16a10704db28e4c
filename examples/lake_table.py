"""Lake's runs by every learner: `python examples/lake.py --table`, trained on small1, on small2, and on both.

Each training has the same seconds of processor time (budget.py), with what omniglot.py --table found to be best with 20 ways; where its log
does not say, with the learner's recipe. Then "best practice" (practice.py): ProtoNet with turned characters as classes, episodes within
an alphabet, jitter, strokes of other thickness, cosines, more channels or ways, several views of a test's drawing. What of it is taken is
chosen without one alphabet of the training set, in runs of its characters made like Lake's, one drawer's against another's: every practice
is tried for an eighth of the time, the best three for a third. The runs see each final network once.

Finished trainings are in the file of results, candidates in the log beside it; both are skipped, and unfinished ones go on. Several
processes share the work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import budget
import learners
import persist
import practice
import recipes
import records
import runs
import table
import torch
from common import Estimate, Learner, print_table
from practice import Practice
from recipes import Recipe

from fastmeta.data import Omniglot, TaskSampler, sample_episodes

SETS = {"small1": "Korean", "small2": "Japanese_(katakana)", "both": "Japanese_(katakana)"}  # the alphabet that judges
BEST = "best practice"
RUNGS = ((1 / 8, None), (1 / 3, 3))  # of its search: the part of the time, and how many of the best take part
KEY, LOG_KEY = ("learner", "trained", "budget", "seed"), ("trained", "budget", "practice", "seed")
VIEWS, RUNS = (1, 10), 100  # of a test's drawing; made of an alphabet
SEARCH = Path(__file__).parent / "results/table_search.json"  # of omniglot.py --table
SHOWN = 24  # mistaken drawings that are kept for the picture


class Job(NamedTuple):
    learner: str
    trained: str
    practice: Practice | None
    seconds: float
    judged: bool
    views: int = 1

    @property
    def name(self) -> str:
        tried = "-".join(map(str, self.practice or ()))
        return "-".join([self.learner.replace(" ", "-"), self.trained, f"{self.seconds:g}", tried, str(self.judged)])


class Runs:
    """What is done and what is not."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, args.work
        self.log = args.results.with_name(f"{args.results.stem}_search.json")
        self.searched = records.load(args.search) if args.search else []
        self.runs = runs.load(args.runs)

    def jobs(self) -> Iterator[Job]:
        done, log, args = records.load(self.args.results), records.load(self.log), self.args
        for trained, learner in itertools.product(args.sets or SETS, args.only or [*recipes.RECIPES, BEST]):
            if records.of(done, learner=learner, trained=trained, budget=args.budget, seed=args.seed):
                continue
            if learner == BEST:
                yield from self.of_practice(trained, log)
            elif learner == "leo" and not self.saved(trained).exists():
                yield Job("protonet", trained, None, args.budget, False)
            else:
                yield Job(learner, trained, None, args.budget, False)

    def of_practice(self, trained: str, log: list[Any]) -> list[Job]:
        """The search's trainings that are left, then that of the best it found."""
        found = table.climb(
            RUNGS, self.args.budget, practice.CANDIDATES[: self.args.candidates],
            lambda tried, seconds: Job(BEST, trained, tried, seconds, True), lambda job: self.judgement(job, log),
        )  # fmt: skip
        if found.best is None:
            return [job for job in found.jobs if self.judgement(job, log) is None]
        return [found.best._replace(seconds=self.args.budget, judged=False, views=found.judgement[1])]

    def judgement(self, job: Job, log: list[Any]) -> tuple[float, int] | None:
        """A candidate's least error and the views it needs; None: not tried yet."""
        rows = records.of(
            log, trained=job.trained, budget=job.seconds, practice=[*(job.practice or ())], seed=self.args.seed
        )
        return min((row["error"][str(views)][0], views) for row in rows for views in VIEWS) if rows else None

    def saved(self, trained: str) -> Path:
        return self.work / f"protonet-{trained}-{self.args.budget:g}-{self.args.seed}.pt"

    def run(self, job: Job) -> str:
        recipe = self.recipe(job)
        torch.manual_seed(self.args.seed)
        learner, settings = self.build(job, recipe)
        training = budget.Training(
            learner, self.sampler(job, recipe), seconds=job.seconds, lr=recipe.lr, outer=recipe.outer, rate_lr=recipe.rate_lr,
            noise=self.args.seed,
        )  # fmt: skip
        training.run(self.work / job.name / "checkpoint.pt")
        if job.learner == "protonet":
            persist.save(self.saved(job.trained), {"settings": settings, "state": learner.state_dict()})
        told = self.judge(job, learner) if job.judged else self.evaluate(job, recipe, training)
        shutil.rmtree(self.work / job.name)
        return f"{job.learner} on {job.trained}, {training.step} steps in {job.seconds:g} s: {told}"

    def recipe(self, job: Job) -> Recipe:
        """Of 20 ways; the best of omniglot.py's search, if it has been."""
        if job.practice is not None:
            return Recipe(tasks=1, lr=job.practice.lr, ways=job.practice.ways, shots=1)
        tried = recipes.candidates(job.learner, 20)
        rows = [
            row for row in records.of(self.searched, learner=job.learner, trained_ways=20)
            if row["accuracy"] and Recipe(**row["recipe"]) in tried
        ]  # fmt: skip
        best = tried[0]
        if rows:
            best = Recipe(**max(rows, key=lambda row: (row["budget"], row["accuracy"][0]))["recipe"])
        return best._replace(ways=best.ways or 20, shots=best.shots or 1)

    def build(self, job: Job, recipe: Recipe) -> tuple[Learner, dict[str, Any]]:
        settings = recipes.settings(job.learner, recipe, self.args.hidden)
        if job.practice is not None:
            return practice.build(job.practice), settings
        if job.learner == "leo":
            embedding, settings["embedding"] = recipes.load(self.saved(job.trained))
        learner = recipes.build(settings)
        if job.learner == "leo":
            learner.embedding.load_state_dict(embedding.encoder.state_dict())
        return learner, settings

    def sampler(self, job: Job, recipe: Recipe) -> TaskSampler:
        data = practice.drawings(self.args.root, job.trained, SETS[job.trained] if job.judged else None)
        if job.practice is not None:
            return TaskSampler(practice.episodes(data, job.practice), 1, seed=self.args.seed)
        ways = min(recipe.ways, len(data.images))
        return TaskSampler(
            lambda count, generator: sample_episodes(
                data.images, count, ways, recipe.shots, recipes.QUERIES, generator=generator
            ),
            recipe.tasks,
            seed=self.args.seed,
        )

    def judge(self, job: Job, learner: Learner) -> str:
        """The error in runs of the alphabet that was left out, by the number of views."""
        name = "small1" if job.trained == "small1" else "small2"
        images = Omniglot(
            self.args.root, f"images_background_{name}", alphabets=[SETS[job.trained]], size=learners.SIDE
        ).images
        made = practice.made_runs(images, RUNS, runs.CLASSES)
        found = {
            str(views): Estimate.of(runs.errors(practice.seen(learner, job.practice, views), made)) for views in VIEWS
        }
        row = {
            "trained": job.trained,
            "budget": job.seconds,
            "practice": [*(job.practice or ())],
            "seed": self.args.seed,
        }
        error = {views: [round(x, 2) for x in estimate] for views, estimate in found.items()}
        records.add(self.log, row | {"fields": [*Practice._fields], "error": error}, key=LOG_KEY)
        return f"{error} % wrong in runs of {SETS[job.trained]}, with {job.practice}"

    def evaluate(self, job: Job, recipe: Recipe, training: budget.Training) -> str:
        args = self.args
        if records.of(
            records.load(args.results), learner=job.learner, trained=job.trained, budget=job.seconds, seed=args.seed
        ):
            return "as before"
        learner = training.learner
        if recipe.test_steps is not None:
            learner = learners.after(learner, recipe.test_steps)
        learner = practice.seen(learner, job.practice, job.views)
        found = runs.errors(learner, self.runs)
        estimate = None if training.diverged else Estimate.of(found)
        row = {
            "learner": job.learner, "trained": job.trained, "budget": job.seconds, "seed": args.seed, "runs": len(self.runs),
            "error": estimate and [round(x, 2) for x in estimate], "of_run": found.round().tolist(), "steps": training.step,
            "seconds": round(training.spent, 1), "recipe": recipe._asdict(), "views": job.views,
            "practice": None if job.practice is None else job.practice._asdict(),
            "mistaken": runs.mistaken(learner, self.runs, SHOWN) if job.practice else None,
        }  # fmt: skip
        records.add(args.results, json.loads(json.dumps(row)), key=KEY)
        return f"{table.said(estimate)} wrong in {len(self.runs)} runs"


def main(args: argparse.Namespace) -> None:
    if args.results is None or args.root is None or not args.budget >= 0.01:
        raise ValueError("--table needs --root DIR, --results FILE, and a --budget of 0.01 seconds or more")
    torch.set_num_threads(1)
    table.work(Runs(args))
    rows = records.of(records.load(args.results), budget=args.budget, seed=args.seed)
    print_table(["learner", "trained on", "error"], [
        [row["learner"], row["trained"], "{:.1f} ± {:.1f} %".format(*row["error"]) if row["error"] else "diverged"] for row in rows
    ])  # fmt: skip

"""Every learner on Omniglot on equal terms: `python examples/omniglot.py --table`.

Each training has the same seconds of processor time on one thread. What it is trained with is searched for before, on nine tenths of the
training characters, and judged on the last tenth: every candidate of recipes.SEARCH for a twentieth of the time, the best three for an
eighth. A metric learner is trained once, with the most ways; any other for each number of ways, with 1 shot; 5 shots are tested with
the same networks. LEO embeds by ProtoNet's network, whose training comes on top.

Every finished training is in the file of results, and every candidate in its neighbour's, the log of the search: what is there is not
trained again. An unfinished one goes on from its checkpoint. Start the command twice, and two processes share the work.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import budget
import few_shot
import learners
import persist
import recipes
import records
import torch
from common import Estimate, Learner, print_table
from recipes import Recipe
from torch import Tensor

from fastmeta.data import TaskSampler, sample_episodes

SEEDED = ("protonet", "maml", "meta-sgd")  # with three seeds
RUNGS = ((1 / 20, None), (1 / 8, 3))  # of the search: the part of the time, and how many of the best take part
SHOTS = (1, 5)
KEY = ("learner", "network", "trained_ways", "budget", "recipe")  # of the log
VALIDATION = 200  # episodes


class Job(NamedTuple):
    """One training. `judged`: a candidate of the search, and no network for the test."""

    learner: str
    network: str
    ways: int
    seed: int
    recipe: Recipe
    seconds: float
    judged: bool

    @property
    def key(self) -> dict[str, Any]:
        named = {"learner": self.learner, "network": self.network, "trained_ways": self.ways, "budget": self.seconds}
        return named | (
            {"recipe": json.loads(json.dumps(self.recipe._asdict()))} if self.judged else {"seed": self.seed}
        )

    @property
    def name(self) -> str:
        """Of its files: another recipe has others."""
        text = json.dumps([self.key, self.recipe._asdict()], sort_keys=True).encode()
        return f"{self.learner}-{self.ways}-{self.seed}-{zlib.crc32(text):08x}"


class Table:
    """What is done and what is not. `ways`: of the test; of a training, where it is no metric learner's."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.results, self.work = args, args.results, args.work
        self.log = self.results.with_name(f"{self.results.stem}_search.json")
        self.ways, self.network = args.ways or [5, 20], f"Conv4-{args.hidden}"
        training, self.test = few_shot.load(args)  # the first a character in its four turns after the other's
        tenth = torch.arange(len(training)) % (len(training) // 4) % 10 == 0  # with all turns of its characters
        self.training = {False: training, True: training[~tenth]}
        self.validation = training[tenth]

    def jobs(self) -> Iterator[Job]:
        """Those that can begin now: the search before the training, ProtoNet's before LEO's."""
        done, log = records.load(self.results), records.load(self.log)
        for learner in self.args.only or recipes.RECIPES:
            for ways in [max(self.ways)] if learner in learners.METRIC else self.ways:
                yield from self.next_of(learner, ways, done, log)

    def next_of(self, learner: str, ways: int, done: list[Any], log: list[Any]) -> list[Job]:
        """Of one learner's search and trainings those that can begin now."""
        if all(self.is_done(job, done) for job in self.trainings(learner, ways, recipes.RECIPES[learner])):
            return []  # by whatever search
        found = self.search(learner, ways, log)
        jobs, rows = found.jobs, log
        if found.best is not None:
            jobs, rows = self.trainings(learner, ways, found.best.recipe), done
        left = [job for job in jobs if not self.is_done(job, rows)]
        if learner != "leo":
            return left
        needed = [self.embedding_of(job, log) for job in left]
        if None in needed:
            return self.next_of("protonet", max(self.ways), done, log)
        return [job for job in needed[:1] if job and not self.saved(job).exists()] or left

    def search(self, learner: str, ways: int, log: list[Any]) -> Climb:
        def job(recipe: Recipe, seconds: float) -> Job:
            return Job(learner, self.network, ways, self.args.seed, recipe, seconds, True)

        candidates = recipes.candidates(learner, ways)
        return climb(RUNGS, self.args.budget, candidates, job, lambda job: self.judgement(job, log))

    def trainings(self, learner: str, ways: int, recipe: Recipe) -> list[Job]:
        seeds = [self.args.seed + n for n in range(3 if learner in SEEDED else 1)]
        return [Job(learner, self.network, ways, seed, recipe, float(self.args.budget), False) for seed in seeds]

    def is_done(self, job: Job, rows: list[Any]) -> bool:
        found = records.of(rows, **job.key)
        return bool(found) if job.judged else all(records.of(found, ways=w, shots=s) for w, s in self.tests(job))

    def judgement(self, job: Job, log: list[Any]) -> float | None:
        """The lower, the better; None: not tried yet."""
        found = [-row["accuracy"][0] if row["accuracy"] else 0.0 for row in records.of(log, **job.key)]
        return found[0] if found else None

    def tests(self, job: Job) -> list[tuple[int, int]]:
        return [*itertools.product(self.ways if job.learner in learners.METRIC else [job.ways], SHOTS)]

    def saved(self, job: Job) -> Path:
        return self.work / f"{job.name}.pt"

    def embedding_of(self, job: Job, log: list[Any]) -> Job | None:
        """The training whose network LEO embeds by: in the search one that has not seen the validation either; None: not known yet."""
        best: Job | None = self.search("protonet", max(self.ways), log).best
        return best if best is None or job.judged else self.trainings("protonet", max(self.ways), best.recipe)[0]

    def run(self, job: Job) -> str:
        """Train, and put what comes of it into the files; what it says of it."""
        folder = self.work / job.name
        learner, settings = self.build(job)
        training = budget.Training(
            learner, self.sampler(job), seconds=job.seconds, lr=job.recipe.lr, outer=job.recipe.outer,
            rate_lr=job.recipe.rate_lr, noise=job.seed,
        )  # fmt: skip
        training.run(folder / "checkpoint.pt")
        if job.learner == "protonet" and job.seed == self.args.seed:
            persist.save(self.saved(job), {"settings": settings, "state": learner.state_dict()})
        told = self.judge(job, training) if job.judged else self.evaluate(job, training)
        shutil.rmtree(folder)
        return f"{job.learner}, {job.ways} ways, seed {job.seed}, {training.step} steps in {job.seconds:g} s: {told}"

    def build(self, job: Job) -> tuple[Learner, dict[str, Any]]:
        torch.manual_seed(job.seed)
        settings = recipes.settings(
            job.learner, job.recipe._replace(ways=job.recipe.ways or job.ways), self.args.hidden
        )
        if job.learner != "leo":
            return recipes.build(settings).to(self.args.device), settings
        embedding, settings["embedding"] = recipes.load(self.saved(self.embedding_of(job, records.load(self.log))))
        learner = recipes.build(settings)
        learner.embedding.load_state_dict(embedding.encoder.state_dict())
        return learner.to(self.args.device), settings

    def sampler(self, job: Job) -> TaskSampler:
        images, recipe = self.training[job.judged], job.recipe
        ways, shots = min(recipe.ways or job.ways, len(images)), recipe.shots or 1
        return TaskSampler(
            lambda count, generator: sample_episodes(images, count, ways, shots, recipes.QUERIES, generator=generator),
            recipe.tasks,
            seed=job.seed,
        )

    def judge(self, job: Job, training: budget.Training) -> str:
        found = (
            None
            if training.diverged
            else self.accuracy(job, training, self.validation, job.ways, 1, min(VALIDATION, self.args.eval_tasks))
        )
        row = job.key | {"seed": job.seed, "steps": training.step, "diverged": training.diverged}
        records.add(self.log, row | {"accuracy": found and [round(x, 2) for x in found]}, key=KEY)
        return f"{said(found)} of the validation, with {job.recipe}"

    def evaluate(self, job: Job, training: budget.Training) -> str:
        told = []
        for ways, shots in self.tests(job):
            if records.of(records.load(self.results), **job.key, ways=ways, shots=shots):
                continue
            found = (
                None
                if training.diverged
                else self.accuracy(job, training, self.test, ways, shots, self.args.eval_tasks)
            )
            records.add(self.results, {
                "learner": job.learner, "network": job.network, "ways": ways, "shots": shots, "seed": job.seed,
                "budget": job.seconds, "trained_ways": job.ways, "recipe": job.recipe._asdict(), "steps": training.step,
                "seconds": round(training.spent, 1), "accuracy": found and [round(x, 2) for x in found],
                "episodes": self.args.eval_tasks,
            })  # fmt: skip
            told.append(f"{ways}-way {shots}-shot {said(found)}")
        return ", ".join(told)

    def accuracy(
        self, job: Job, training: budget.Training, images: Tensor, ways: int, shots: int, tasks: int
    ) -> Estimate:
        learner, steps = training.learner, job.recipe.test_steps
        if steps is not None:
            learner = learners.after(learner, steps)
        options = {"tasks": tasks, "ways": ways, "shots": shots, "queries": recipes.QUERIES}
        return Estimate.of(few_shot.accuracies(learner, images, **options))


def main(args: argparse.Namespace) -> None:
    if args.data != "omniglot" or args.train_classes:
        raise ValueError("--table must have Omniglot's archives, got --data or --train-classes")
    if not args.budget >= 0.01:
        raise ValueError(f"--budget must be 0.01 seconds or more, got {args.budget}")
    torch.set_num_threads(1)
    work(Table(args))
    show(records.load(args.results), args.budget)


class Climb(NamedTuple):
    """The jobs of the rung that a search has come to; the best of the last and its judgement, None where that is not over."""

    jobs: list[Any]
    best: Any
    judgement: Any


def climb(
    rungs: Sequence[tuple[float, int | None]],
    budget: float,
    candidates: Sequence[Any],
    job: Callable[[Any, float], Any],
    judgement: Callable[[Any], Any],
) -> Climb:
    """A search by short trainings, then by longer ones of the best: `rungs` are parts of the time, and how many take part, None for all.

    `job` makes a training of a candidate and its seconds. The least `judgement` is the best; None: not known yet.
    """
    for part, most in rungs:
        jobs = [job(candidate, round(part * budget, 4)) for candidate in candidates[:most]]
        found = [judgement(one) for one in jobs]
        if None in found:
            return Climb(jobs, None, None)
        order = sorted(range(len(jobs)), key=found.__getitem__)
        candidates = [candidates[i] for i in order]
    return Climb(jobs, jobs[order[0]], found[order[0]])


def work(plan: Any) -> None:
    """`plan.jobs()` as long as there are any, by `plan.run`, each claimed by its name in the folder `plan.work`."""
    while jobs := [*plan.jobs()]:
        for job in jobs:
            folder = plan.work / job.name
            with persist.claim(folder, wait=False) as own:
                if own and job in plan.jobs():  # not done by another since
                    print(plan.run(job), flush=True)
                    break
            if own:
                with contextlib.suppress(OSError):  # made by the claim, if it is empty
                    folder.rmdir()
        else:
            time.sleep(1)  # others do what is left


def show(rows: list[Any], seconds: float) -> None:
    cells: dict[tuple[Any, ...], list[Any]] = {}
    for row in records.of(rows, budget=seconds):
        cells.setdefault((row["learner"], row["ways"], row["shots"]), []).append(row)
    header = ["learner", "ways", "shots", "seeds", "accuracy", "training episodes"]
    print_table(header, [
        [learner, f"{ways}", f"{shots}", f"{len(of)}", said(over(of)), episodes(of)]
        for (learner, ways, shots), of in cells.items()
    ])  # fmt: skip


def said(found: Estimate | None) -> str:
    return "diverged" if found is None else f"{found:.1f} %"


def over(rows: list[Any]) -> Estimate | None:
    """The mean over several seeds, and 1.96 standard errors over all of their episodes; None if one diverged."""
    found = [row["accuracy"] for row in rows if row["accuracy"]]
    if len(found) < len(rows):
        return None
    return Estimate(fmean(x[0] for x in found), sum(x[1] ** 2 for x in found) ** 0.5 / len(found))


def episodes(rows: list[Any]) -> str:
    """Of a training, the mean over the seeds."""
    return f"{fmean(row['steps'] * row['recipe']['tasks'] for row in rows):.0f}"

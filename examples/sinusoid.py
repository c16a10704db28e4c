"""Sinusoid regression by MAML or Meta-SGD: a small network learns to fit a new sine from a few points in a few steps.

The setting of MAML's paper (Finn et al. 2017, arXiv:1703.03400, section 5.1). All tasks of a batch adapt in one native
call, because the network is an nn.Sequential of linear layers and ReLU.

--table: both learners, 5, 10 and 20 shots, seeds 0, 1 and 2, on MAML's sinusoids and on those of Meta-SGD's paper, which have a
frequency of their own. What is in the file of results already is not trained again.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import learners
import records
import torch
from common import TIMING_HEADER, Estimate, Sample, arguments, count, print_table, race, run, train
from torch import Tensor

import fastmeta
from fastmeta.data import Episodes, Sinusoid

TEST_STEPS = (0, 1, 5, 10)
TEST_SEED, TEST_QUERIES = 1_000_003, 100
LEARNERS, SHOTS, SEEDS = ("maml", "meta-sgd"), (5, 10, 20), (0, 1, 2)  # of --table
OF_MAML, OF_META_SGD = (1.0, 1.0), (0.8, 1.2)  # frequencies; the latter as programs have it that compare with Meta-SGD


def sampler(*, tasks: int, shots: int, seed: int, device: str = "cpu", frequency: Sequence[float] = OF_MAML) -> Sample:
    """Fresh tasks at every call, with as many query points as shots."""
    family, generator = Sinusoid(frequency=frequency), torch.Generator(device).manual_seed(seed)
    return lambda: family.sample(tasks, shots, shots, generator=generator)


def unseen_tasks(tasks: int, shots: int, device: str = "cpu", frequency: Sequence[float] = OF_MAML) -> Episodes:
    generator = torch.Generator(device).manual_seed(TEST_SEED)
    return Sinusoid(frequency=frequency).sample(tasks, shots, TEST_QUERIES, generator=generator)


@torch.no_grad()
def errors(learner: fastmeta.MAML, tasks: Episodes, steps: int) -> Tensor:
    """The mean squared error on the query of each task after `steps` inner steps, [T]."""
    return learners.after(learner, steps).loss(*tasks)


def main(args: argparse.Namespace) -> None:
    if args.results:
        records.load(args.results)  # a broken one is told before the training
    if args.table:
        return table(args)
    learner, sample = problem(args)
    timing = race(learner, sample, rounds=min(args.steps, 200), label=args.learner)
    seconds, found = measured(args, learner, sample)
    print(f"\n{args.learner}, {args.shots} shots, trained with {args.inner_steps} inner steps")
    rows = [[str(k), f"{error:.3f}"] for k, error in found.items()]
    print_table(["inner steps", f"MSE on {args.eval_tasks} unseen tasks (95 % CI)"], rows)
    print(f"\nmeta-iteration of {args.tasks} tasks")
    print_table(TIMING_HEADER, [timing.columns()])
    if args.results:
        records.add(args.results, row(args, seconds, found))


def problem(args: argparse.Namespace) -> tuple[fastmeta.MAML, Sample]:
    inner = {"inner_lr": args.inner_lr, "inner_steps": args.inner_steps}
    tasks = {name: getattr(args, name) for name in ("tasks", "shots", "seed", "device", "frequency")}
    return learners.build(args.learner, model="sinusoid", **inner).to(args.device), sampler(**tasks)


def measured(args: argparse.Namespace, learner: fastmeta.MAML, sample: Sample) -> tuple[float, dict[int, Estimate]]:
    """Train; processor time, and the error after each number of inner steps."""
    start = time.process_time()
    train(learner, sample, steps=args.steps, lr=args.lr, label=args.learner)
    seconds = time.process_time() - start
    unseen = unseen_tasks(args.eval_tasks, args.shots, args.device, args.frequency)
    return seconds, {k: Estimate.of(errors(learner, unseen, k)) for k in TEST_STEPS}


def table(args: argparse.Namespace) -> None:
    """Every cell that the file of results does not have."""
    if args.results is None:
        raise ValueError("--table needs --results FILE, got none")
    for frequency, shots, learner, seed in itertools.product((OF_MAML, OF_META_SGD), SHOTS, LEARNERS, SEEDS):
        cell = {"learner": learner, "shots": shots, "seed": seed, "frequency": [*frequency]}
        if records.of(records.load(args.results), **cell):
            continue
        own = argparse.Namespace(**vars(args) | cell)
        torch.manual_seed(seed)
        seconds, found = measured(own, *problem(own))
        records.add(args.results, row(own, seconds, found))
        print(cell, ", ".join(f"{k}: {error:.3f}" for k, error in found.items()), flush=True)


def row(args: argparse.Namespace, seconds: float, found: dict[int, Estimate]) -> dict[str, Any]:
    """Of the file of results; an error that diverges is None."""
    return {
        "learner": args.learner, "shots": args.shots, "seed": args.seed, "frequency": [*args.frequency], "inner_lr": args.inner_lr,
        "inner_steps": args.inner_steps, "tasks": args.tasks, "steps": args.steps, "test_tasks": args.eval_tasks,
        "seconds": round(seconds, 1),
        "mse": {k: [round(z, 4) for z in error] if math.isfinite(error.mean) else None for k, error in found.items()},
    }  # fmt: skip


def options() -> argparse.ArgumentParser:
    parser = arguments(__doc__, steps=20_000)
    parser.add_argument("--learner", choices=LEARNERS, default="maml", help="which algorithm")
    parser.add_argument("--shots", type=count, default=10, help="support points of a task")
    parser.add_argument("--inner-steps", type=count, default=1, help="inner steps while training")
    parser.add_argument("--inner-lr", type=float, default=0.01, help="inner learning rate; where Meta-SGD's start")
    parser.add_argument("--tasks", type=count, default=25, help="tasks of a meta-iteration")
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's learning rate")
    parser.add_argument("--eval-tasks", type=count, default=1000, help="unseen tasks to evaluate on")
    parser.add_argument(
        "--frequency",
        type=float,
        nargs=2,
        default=OF_MAML,
        metavar=("LOW", "HIGH"),
        help="range of the tasks' frequencies",
    )
    parser.add_argument("--table", action="store_true", help="all cells, by --tasks, --steps, ... as they are given")
    parser.add_argument("--results", type=Path, help="file that the figures go into")
    return parser


if __name__ == "__main__":
    run(options(), main)

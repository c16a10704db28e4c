"""Sinusoid regression by MAML or Meta-SGD: a small network learns to fit a new sine from a few points in a few steps.

The setting of MAML's paper (Finn et al. 2017, arXiv:1703.03400, section 5.1). All tasks of a batch adapt in one native
call, because the network is an nn.Sequential of linear layers and ReLU.
"""

from __future__ import annotations

import argparse
import math
import time
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


def sampler(*, tasks: int, shots: int, seed: int, device: str = "cpu") -> Sample:
    """Fresh tasks at every call, with as many query points as shots."""
    generator = torch.Generator(device).manual_seed(seed)
    return lambda: Sinusoid().sample(tasks, shots, shots, generator=generator)


def unseen_tasks(tasks: int, shots: int, device: str = "cpu") -> Episodes:
    generator = torch.Generator(device).manual_seed(TEST_SEED)
    return Sinusoid().sample(tasks, shots, TEST_QUERIES, generator=generator)


@torch.no_grad()
def errors(learner: fastmeta.MAML, tasks: Episodes, steps: int) -> Tensor:
    """The mean squared error on the query of each task after `steps` inner steps, [T]."""
    return learners.after(learner, steps).loss(*tasks)


def main(args: argparse.Namespace) -> None:
    if args.results:
        records.load(args.results)  # a broken one is told before the training
    inner = {"inner_lr": args.inner_lr, "inner_steps": args.inner_steps}
    learner = learners.build(args.learner, model="sinusoid", **inner).to(args.device)
    sample = sampler(tasks=args.tasks, shots=args.shots, seed=args.seed, device=args.device)
    timing = race(learner, sample, rounds=min(args.steps, 200), label=args.learner)
    start = time.process_time()
    train(learner, sample, steps=args.steps, lr=args.lr, label=args.learner)
    seconds = time.process_time() - start

    unseen = unseen_tasks(args.eval_tasks, args.shots, args.device)
    found = {k: Estimate.of(errors(learner, unseen, k)) for k in TEST_STEPS}
    print(f"\n{args.learner}, {args.shots} shots, trained with {args.inner_steps} inner steps")
    rows = [[str(k), f"{error:.3f}"] for k, error in found.items()]
    print_table(["inner steps", f"MSE on {args.eval_tasks} unseen tasks (95 % CI)"], rows)
    print(f"\nmeta-iteration of {args.tasks} tasks")
    print_table(TIMING_HEADER, [timing.columns()])
    if args.results:
        records.add(args.results, row(args, seconds, found))


def row(args: argparse.Namespace, seconds: float, found: dict[int, Estimate]) -> dict[str, Any]:
    """Of the file of results; an error that diverges is None."""
    return {
        "learner": args.learner, "shots": args.shots, "seed": args.seed, "inner_lr": args.inner_lr,
        "inner_steps": args.inner_steps, "tasks": args.tasks, "steps": args.steps, "test_tasks": args.eval_tasks,
        "seconds": round(seconds, 1),
        "mse": {k: [round(z, 4) for z in error] if math.isfinite(error.mean) else None for k, error in found.items()},
    }  # fmt: skip


def options() -> argparse.ArgumentParser:
    parser = arguments(__doc__, steps=20_000)
    parser.add_argument("--learner", choices=("maml", "meta-sgd"), default="maml", help="which algorithm")
    parser.add_argument("--shots", type=count, default=10, help="support points of a task")
    parser.add_argument("--inner-steps", type=count, default=1, help="inner steps while training")
    parser.add_argument("--inner-lr", type=float, default=0.01, help="inner learning rate; where Meta-SGD's start")
    parser.add_argument("--tasks", type=count, default=25, help="tasks of a meta-iteration")
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's learning rate")
    parser.add_argument("--eval-tasks", type=count, default=1000, help="unseen tasks to evaluate on")
    parser.add_argument("--results", type=Path, help="file that the figures go into")
    return parser


if __name__ == "__main__":
    run(options(), main)

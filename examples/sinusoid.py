"""Sinusoid regression by MAML or Meta-SGD: a small network learns to fit a new sine from a few points in a few steps.

The setting of MAML's paper (Finn et al. 2017, arXiv:1703.03400, section 5.1). All tasks of a batch adapt in one native
call, because the network is an nn.Sequential of linear layers and ReLU.
"""

from __future__ import annotations

import argparse
import copy

import torch
from common import TIMING_HEADER, Estimate, Sample, arguments, count, mlp, print_table, race, run, train
from torch import Tensor

import fastmeta
from fastmeta.data import Episodes, Sinusoid

LEARNERS = {"maml": fastmeta.MAML, "meta-sgd": fastmeta.MetaSGD}
TEST_STEPS = (0, 1, 5, 10)
TEST_SEED, TEST_QUERIES = 1_000_003, 100


def build(learner: str, *, inner_lr: float = 0.01, inner_steps: int = 1, device: str = "cpu") -> fastmeta.MAML:
    return LEARNERS[learner](mlp(1, 40, 40, 1), inner_lr, inner_steps, loss="mse").to(device)


def sampler(*, tasks: int, shots: int, seed: int, device: str = "cpu") -> Sample:
    """Fresh tasks at every call, with as many query points as shots."""
    generator = torch.Generator(device).manual_seed(seed)
    return lambda: Sinusoid().sample(tasks, shots, shots, generator=generator)


def unseen_tasks(tasks: int, shots: int, device: str = "cpu") -> Episodes:
    generator = torch.Generator(device).manual_seed(TEST_SEED)
    return Sinusoid().sample(tasks, shots, TEST_QUERIES, generator=generator)


def after(learner: fastmeta.MAML, steps: int) -> fastmeta.MAML:
    """The same learner with another number of inner steps."""
    other = copy.copy(learner)
    other.steps = steps
    return other


@torch.no_grad()
def errors(learner: fastmeta.MAML, tasks: Episodes, steps: int) -> Tensor:
    """The mean squared error on the query of each task after `steps` inner steps, [T]."""
    return after(learner, steps).loss(*tasks)


def main(args: argparse.Namespace) -> None:
    learner = build(args.learner, inner_lr=args.inner_lr, inner_steps=args.inner_steps, device=args.device)
    sample = sampler(tasks=args.tasks, shots=args.shots, seed=args.seed, device=args.device)
    timing = race(learner, sample, rounds=min(args.steps, 200), label=args.learner)
    train(learner, sample, steps=args.steps, lr=args.lr, label=args.learner)

    unseen = unseen_tasks(args.eval_tasks, args.shots, args.device)
    print(f"\n{args.learner}, {args.shots} shots, trained with {args.inner_steps} inner steps")
    rows = [[str(k), f"{Estimate.of(errors(learner, unseen, k)):.3f}"] for k in TEST_STEPS]
    print_table(["inner steps", f"MSE on {args.eval_tasks} unseen tasks (95 % CI)"], rows)
    print(f"\nmeta-iteration of {args.tasks} tasks")
    print_table(TIMING_HEADER, [timing.columns()])


if __name__ == "__main__":
    parser = arguments(__doc__, steps=20_000)
    parser.add_argument("--learner", choices=LEARNERS, default="maml", help="which algorithm")
    parser.add_argument("--shots", type=count, default=10, help="support points of a task")
    parser.add_argument("--inner-steps", type=count, default=1, help="inner steps while training")
    parser.add_argument("--inner-lr", type=float, default=0.01, help="inner learning rate; where Meta-SGD's start")
    parser.add_argument("--tasks", type=count, default=25, help="tasks of a meta-iteration")
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's learning rate")
    parser.add_argument("--eval-tasks", type=count, default=1000, help="unseen tasks to evaluate on")
    run(parser, main)

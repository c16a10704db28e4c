"""Few-shot classification of characters by ProtoNet or MAML, on printed glyphs (no download) or on Omniglot.

ProtoNet: Snell et al. 2017, arXiv:1703.05175. MAML: Finn et al. 2017, arXiv:1703.03400. The alphabets of the test are
not seen in training.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import learners
import torch
from common import TIMING_HEADER, Estimate, Learner, Sample, arguments, count, print_table, race, run, train
from torch import Tensor

from fastmeta.data import Glyphs, Omniglot, sample_episodes

TEST_SEED = 1_000_003
TEST_BATCH = 5  # episodes at a time: larger activations are no faster, and mapped anew by every malloc


def data_arguments(parser: argparse.ArgumentParser, *others: str) -> None:
    """`others`: what else than images may be chosen."""
    parser.add_argument("--data", choices=("glyphs", "omniglot", *others), default="glyphs", help="which tasks")
    parser.add_argument("--root", help="Omniglot: the folder of its zip archives; folder: that of the class folders")
    parser.add_argument("--train-archive", default="images_background", help="Omniglot: trained on, with 4 rotations")
    parser.add_argument("--test-archive", default="images_evaluation", help="Omniglot: tested on, upright")
    parser.add_argument("--test-alphabets", nargs="+", metavar="NAME", help="Omniglot: those to test on; None: all")
    parser.add_argument("--train-classes", metavar="FILE", help="those to train on, as in the papers, one name a line")
    parser.add_argument(
        "--test-classes", metavar="FILE", help="the same to test on; of Omniglot both archives are read"
    )


def load(args: argparse.Namespace, size: int = learners.SIDE) -> tuple[Tensor, Tensor]:
    """Training and test images, [classes, 20, 1, size, size], uint8, without a common alphabet."""
    if args.data == "glyphs":
        return Glyphs("train", size=size).images.to(args.device), Glyphs("test", size=size).images.to(args.device)
    if args.root is None:
        raise ValueError("--data omniglot needs --root DIR, the folder of the archives (images_background.zip, ...)")
    if args.train_classes or args.test_classes:
        return split(args, size)
    training = Omniglot(args.root, args.train_archive, size=size, rotations=True)
    test = Omniglot(args.root, args.test_archive, alphabets=args.test_alphabets, size=size)
    common = sorted(set(training.alphabets) & set(test.alphabets))
    if common:
        raise ValueError(
            f"the test's alphabets must be new, got {', '.join(common)} in both: choose with --test-alphabets"
        )
    return training.images.to(args.device), test.images.to(args.device)


def split(args: argparse.Namespace, size: int) -> tuple[Tensor, Tensor]:
    """The papers' protocol: files name the classes, whichever archive and alphabet they are of."""
    archives, files = (args.train_archive, args.test_archive), class_files(args)
    training, test = (Omniglot(args.root, archives, classes=file, size=size) for file in files)
    new("/".join(name) for name in {*training.characters} & {*test.characters})
    return training.images.to(args.device), test.images.to(args.device)


def class_files(args: argparse.Namespace) -> tuple[str, str]:
    if not (args.train_classes and args.test_classes):
        raise ValueError("--train-classes and --test-classes must come together, got one")
    return args.train_classes, args.test_classes


def new(common: Iterable[str]) -> None:
    """ValueError where a class of the test is trained on."""
    for name in sorted(common):
        raise ValueError(f"the test's classes must be new, got {name} in both files")


def sampler(images: Tensor, *, tasks: int, ways: int, shots: int, queries: int, seed: int) -> Sample:
    generator = torch.Generator(images.device).manual_seed(seed)
    return lambda: sample_episodes(images, tasks, ways, shots, queries, generator=generator)


@torch.no_grad()
def accuracies(learner: Learner, images: Tensor, *, tasks: int, ways: int, shots: int, queries: int) -> Tensor:
    """The share of right answers, in percent, in each of `tasks` episodes, [tasks]."""
    learner.eval()
    sample = sampler(images, tasks=TEST_BATCH, ways=ways, shots=shots, queries=queries, seed=TEST_SEED)
    found = []
    for _ in range(0, tasks, TEST_BATCH):
        support_x, support_y, query_x, query_y = sample()
        right = learner(support_x, support_y, query_x).argmax(-1) == query_y
        found.append(100 * right.float().mean(1))
    return torch.cat(found)[:tasks]


def main(args: argparse.Namespace) -> None:
    train_ways = args.train_ways or args.ways[0]
    if args.learner == "maml" and {train_ways} != {*args.ways}:
        raise ValueError(
            f"MAML's last layer fits one number of ways, got --train-ways {train_ways} and --ways {args.ways}"
        )
    training, test = load(args)
    learner = learners.build(
        args.learner,
        ways=train_ways,
        model=args.model,
        hidden=args.hidden,
        inner_lr=args.inner_lr,
        inner_steps=args.inner_steps,
    ).to(args.device)
    sample = sampler(
        training, tasks=args.tasks, ways=train_ways, shots=args.shots, queries=args.queries, seed=args.seed
    )
    timing = race(learner, sample, rounds=min(args.steps, 20), label=args.learner)
    train(learner, sample, steps=args.steps, lr=args.lr, label=args.learner)

    print(f"\n{args.learner} with {args.model} on {args.data}, {args.shots}-shot, {args.eval_tasks} unseen episodes")
    rows = []
    for ways in args.ways:
        found = accuracies(learner, test, tasks=args.eval_tasks, ways=ways, shots=args.shots, queries=args.queries)
        rows.append([f"{ways}", f"{Estimate.of(found):.1f} %"])
    print_table(["ways", "accuracy (95 % CI)"], rows)
    print(f"\nmeta-iteration of {args.tasks} tasks, {train_ways}-way")
    print_table(TIMING_HEADER, [timing.columns()])


if __name__ == "__main__":
    parser = arguments(__doc__, steps=400)
    data_arguments(parser)
    parser.add_argument("--learner", choices=("protonet", "maml"), default="protonet", help="which algorithm")
    parser.add_argument("--model", choices=("conv4", "mlp"), default="conv4", help="the network")
    parser.add_argument(
        "--hidden", type=count, default=32, help="channels of Conv4 (the papers': 64), width of the MLP"
    )
    parser.add_argument("--ways", type=count, nargs="+", default=[5], help="classes of a task; ProtoNet: one or more")
    parser.add_argument(
        "--train-ways", type=count, help="ProtoNet: classes of a task while training; None: first --ways"
    )
    parser.add_argument("--shots", type=count, default=1, help="support images of a class")
    parser.add_argument("--queries", type=count, default=5, help="query images of a class")
    parser.add_argument("--tasks", type=count, default=4, help="tasks of a meta-iteration")
    parser.add_argument("--inner-lr", type=float, default=0.4, help="MAML: inner learning rate")
    parser.add_argument("--inner-steps", type=count, default=1, help="MAML: inner steps")
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's learning rate")
    parser.add_argument("--eval-tasks", type=count, default=600, help="unseen episodes to evaluate on")
    run(parser, main)

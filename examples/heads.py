"""Frozen features: an encoder of Omniglot's characters trained by SupCon, or by ProtoNet's episodes, on the same images; then few-shot
classification of unseen alphabets by the nearest class mean of its features.

Both have the same budget, --seconds of processor time on one thread, and the same batches: of each step, --batch-ways characters with one
support image and QUERIES more; ProtoNet compares these with the prototypes, SupCon all with all. ProtoNet's encoder runs by fastmeta's
kernels, SupCon's by PyTorch: "protonet-same-steps" takes as many steps as SupCon did. "pixels": no encoder. What comes of it goes into
the file --results, of which `make reproductions` makes the table of docs/heads.md.

SupCon: Khosla et al. 2020, arXiv:2004.11362. ProtoNet: Snell et al. 2017, arXiv:1703.05175.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from pathlib import Path

import few_shot
import learners
import omniglot
import records
import torch
from common import Estimate, Learner, Sample, adam, arguments, count, meta_step, print_table, run
from torch import Tensor, nn

from fastmeta import heads

QUERIES = 5  # images of a class beside its support, in training and test
METRICS = {
    "supcon": "cosine", "protonet": "sqeuclidean", "protonet-same-steps": "sqeuclidean", "pixels": "euclidean",
}  # fmt: skip


class Contrastive(nn.Module):
    """An encoder whose images of one class attract each other: the loss of each task, as a learner's."""

    def __init__(self, encoder: nn.Module, temperature: float) -> None:
        super().__init__()
        self.encoder, self.criterion = encoder, heads.SupCon(temperature)

    def loss(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        images, labels = torch.cat([support_x, query_x], 1), torch.cat([support_y, query_y], 1)
        features = self.encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return torch.stack([self.criterion(x.flatten(1), y) for x, y in zip(features, labels, strict=True)])

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(*batch)


def build(name: str, hidden: int, temperature: float) -> nn.Module:
    learner = learners.build("protonet", hidden=hidden)
    return Contrastive(learner.encoder, temperature) if name == "supcon" else learner


def train(learner: Learner, sample: Sample, *, seconds: float, steps: int | None, lr: float) -> tuple[int, float]:
    """Steps until so many seconds of processor time are spent, or so many are done; Adam's rate falls along a cosine of what is spent.
    How many steps, and seconds."""
    learner.train()
    optimiser = adam(learner, lr)
    done, start = 0, time.process_time()
    while True:
        spent = time.process_time() - start
        share = spent / seconds if steps is None else done / steps
        if share >= 1:
            return done, spent
        optimiser.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * share)) / 2
        meta_step(learner, optimiser, sample())
        done += 1


@torch.no_grad()
def features_of(encoder: nn.Module, images: Tensor) -> Tensor:
    """Of [classes, images, 1, size, size], [classes, images, D]."""
    encoder.eval()
    return torch.stack([encoder(of_class.float() / 255).flatten(1) for of_class in images])


def accuracies(features: Tensor, metric: str, *, tasks: int, ways: int, shots: int) -> Tensor:
    """Of each episode, of whose queries the nearest class mean says the class."""
    sample = few_shot.sampler(features, tasks=tasks, ways=ways, shots=shots, queries=QUERIES, seed=few_shot.TEST_SEED)
    found = [
        heads.NearestClassMean(metric).fit(support_x, support_y).score(query_x, query_y)
        for support_x, support_y, query_x, query_y in zip(*sample(), strict=True)
    ]
    return torch.tensor(found)


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)  # what others run on the machine's cores then leaves the training as it is
    training, test = few_shot.load(args)
    lines, steps_of = [], {}
    for name in args.heads:
        torch.manual_seed(args.seed)
        encoder, steps, seconds = nn.Flatten(), 0, 0.0
        if name != "pixels":
            learner = build(name, args.hidden, args.temperature).to(args.device)
            sample = few_shot.sampler(training, tasks=1, ways=args.batch_ways, shots=1, queries=QUERIES, seed=args.seed)
            given = steps_of.get("supcon") if name == "protonet-same-steps" else args.steps
            steps, seconds = train(learner, sample, seconds=args.seconds, steps=given, lr=args.lr)
            steps_of[name] = steps
            encoder = learner.encoder
        features = features_of(encoder, test)
        for ways, shots in itertools.product(args.ways, args.shots):
            found = Estimate.of(
                100 * accuracies(features, METRICS[name], tasks=args.eval_tasks, ways=ways, shots=shots)
            )
            lines.append([name, f"{ways}", f"{shots}", f"{found:.1f} %", f"{steps} steps in {seconds:.0f} s"])
            if args.results:
                row = {"learner": name, "network": f"Conv4-{args.hidden}" if steps else "none", "ways": ways, "shots": shots,
                       "seed": args.seed, "steps": steps, "seconds": round(seconds, 1), "episodes": args.eval_tasks,
                       "accuracy": [round(value, 2) for value in found]}  # fmt: skip
                records.add(args.results, row)
    header = ["trained by", "ways", "shots", f"accuracy on {args.eval_tasks} unseen episodes (95 % CI)", "training"]
    print_table(header, lines)


def options() -> argparse.ArgumentParser:
    parser = arguments(__doc__, steps=None)
    few_shot.data_arguments(parser)
    parser.set_defaults(data="omniglot", test_alphabets=omniglot.UNSEEN, **omniglot.ARCHIVES)
    parser.add_argument("--heads", choices=METRICS, nargs="+", default=[*METRICS], help="what trains the encoder")
    parser.add_argument("--seconds", type=float, default=75.0, help="processor time of a training, where no --steps")
    parser.add_argument("--hidden", type=count, default=32, help="channels of Conv4")
    parser.add_argument("--batch-ways", type=count, default=20, help="characters of a step")
    parser.add_argument("--temperature", type=float, default=0.1, help="SupCon's")
    parser.add_argument("--lr", type=float, default=2e-3, help="Adam's learning rate at the start")
    parser.add_argument("--ways", type=count, nargs="+", default=[5, 20], help="classes of a test episode")
    parser.add_argument("--shots", type=count, nargs="+", default=[1, 5], help="support images of a class")
    parser.add_argument("--eval-tasks", type=count, default=1000, help="unseen episodes to evaluate on")
    parser.add_argument("--results", type=Path, help="file that the figures go into")
    return parser


if __name__ == "__main__":
    run(options(), main)

"""Frozen features: an encoder of Omniglot's characters trained by SupCon, or by ProtoNet's episodes, on the same images; then few-shot
classification of unseen alphabets by the nearest class mean of its features.

Both train on the same batches: of each step, --batch-ways characters with one support image and QUERIES more; ProtoNet compares these with
the prototypes, SupCon all with all. "pixels": no encoder.

SupCon: Khosla et al. 2020, arXiv:2004.11362. ProtoNet: Snell et al. 2017, arXiv:1703.05175.
"""

from __future__ import annotations

import argparse
import itertools
import time

import few_shot
import learners
import omniglot
import torch
from common import Estimate, arguments, count, print_table, run
from torch import Tensor, nn

import fastmeta
from fastmeta import heads

QUERIES = 5  # images of a class beside its support, in training and test
METRICS = {"protonet": "euclidean", "supcon": "cosine", "pixels": "euclidean"}


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
    encoder, _ = learners.network("conv4", ways=1, hidden=hidden, running_statistics=True)
    return fastmeta.ProtoNet(encoder) if name == "protonet" else Contrastive(encoder, temperature)


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
    training, test = few_shot.load(args)
    lines = []
    for name in args.heads:
        torch.manual_seed(args.seed)
        encoder, start = nn.Flatten(), time.process_time()
        if name != "pixels":
            learner = build(name, args.hidden, args.temperature).to(args.device)
            sample = few_shot.sampler(training, tasks=1, ways=args.batch_ways, shots=1, queries=QUERIES, seed=args.seed)
            omniglot.descend(learner, sample, steps=args.steps, lr=args.lr)
            encoder = learner.encoder
        seconds, features = time.process_time() - start, features_of(encoder, test)
        for ways, shots in itertools.product(args.ways, args.shots):
            found = accuracies(features, METRICS[name], tasks=args.eval_tasks, ways=ways, shots=shots)
            lines.append([name, f"{ways}", f"{shots}", f"{Estimate.of(100 * found):.1f} %", f"{seconds:.0f} s"])
    header = ["trained by", "ways", "shots", f"accuracy on {args.eval_tasks} unseen episodes (95 % CI)", "training"]
    print_table(header, lines)


def options() -> argparse.ArgumentParser:
    parser = arguments(__doc__, steps=1000)
    few_shot.data_arguments(parser)
    parser.set_defaults(data="omniglot", test_alphabets=omniglot.UNSEEN, **omniglot.ARCHIVES)
    parser.add_argument("--heads", choices=METRICS, nargs="+", default=[*METRICS], help="what trains the encoder")
    parser.add_argument("--hidden", type=count, default=32, help="channels of Conv4")
    parser.add_argument("--batch-ways", type=count, default=20, help="characters of a step")
    parser.add_argument("--temperature", type=float, default=0.1, help="SupCon's")
    parser.add_argument("--lr", type=float, default=2e-3, help="Adam's learning rate at the start")
    parser.add_argument("--ways", type=count, nargs="+", default=[5, 20], help="classes of a test episode")
    parser.add_argument("--shots", type=count, nargs="+", default=[1, 5], help="support images of a class")
    parser.add_argument("--eval-tasks", type=count, default=600, help="unseen episodes to evaluate on")
    return parser


if __name__ == "__main__":
    run(options(), main)

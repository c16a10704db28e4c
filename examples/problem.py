"""What train.py trains and on what: the tasks of each split, and every learner with its network."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import few_shot
import torch.nn.functional as F
from common import Learner, mlp
from torch import Tensor, nn

import fastmeta
from fastmeta.data import Episodes, Sinusoid, sample_episodes
from fastmeta.data.task_sampler import Draw

OF_SINUSOIDS = ("maml", "meta-sgd", "anil", "reptile", "imaml")
OF_IMAGES = (*OF_SINUSOIDS, "proto-maml", "leo", "protonet", "matching-net")
DEFAULTS = {  # of the options that are None
    "sinusoid": {"shots": 10, "queries": 10, "inner_lr": 0.01},
    "glyphs": {"shots": 1, "queries": 5, "inner_lr": 0.4},
    "omniglot": {"shots": 1, "queries": 5, "inner_lr": 0.4},
}


def settle(args: argparse.Namespace) -> None:
    """Fill in the options that depend on the data."""
    if args.data == "sinusoid" and args.learner not in OF_SINUSOIDS:
        raise ValueError(
            f"--data sinusoid is a regression, for {', '.join(OF_SINUSOIDS)}, got --learner {args.learner}"
        )
    for name, value in DEFAULTS[args.data].items():
        if getattr(args, name) is None:
            setattr(args, name, value)


class Data(NamedTuple):
    training: Draw
    validation: Draw
    test: Draw


def load(args: argparse.Namespace) -> Data:
    """Sinusoids are all of one kind; of the images a tenth of the training classes, the last, is for validation."""
    if args.data == "sinusoid":
        sinusoids = Sinusoid()

        def draw(tasks: int, generator: Any) -> Episodes:
            return sinusoids.sample(tasks, args.shots, args.queries, generator=generator, device=args.device)

        return Data(draw, draw, draw)
    training, test = few_shot.load(args)
    turns = training.unflatten(0, (4 if args.data == "omniglot" else 1, -1))  # a class and its rotations stay together
    cut = turns.shape[1] - turns.shape[1] // 10
    return Data(*(drawn_from(images, args) for images in (turns[:, :cut].flatten(0, 1), turns[0, cut:], test)))


def drawn_from(images: Tensor, args: argparse.Namespace) -> Draw:
    def draw(tasks: int, generator: Any) -> Episodes:
        found = sample_episodes(images, tasks, args.ways, args.shots, args.queries, generator=generator)
        if args.learner != "leo":
            return found
        support_x, query_x = (F.normalize(x.flatten(2), dim=-1) for x in (found.support_x, found.query_x))
        return found._replace(support_x=support_x, query_x=query_x)  # LEO takes features: here the pixels

    return draw


def build(args: argparse.Namespace) -> Learner:
    metric, loss = args.learner in ("protonet", "matching-net"), "cross_entropy"
    if args.data == "sinusoid":
        encoder, head, loss = nn.Sequential(*mlp(1, 40, 40), nn.ReLU()), nn.Sequential(nn.Linear(40, 1)), "mse"
    else:
        encoder, head = few_shot.network(args.model, ways=args.ways, hidden=args.hidden, running_statistics=metric)
    model, lr, steps = nn.Sequential(*encoder, *head), args.inner_lr, args.inner_steps
    match args.learner:
        case "maml":
            return fastmeta.MAML(model, lr, steps, loss=loss)
        case "meta-sgd":
            return fastmeta.MetaSGD(model, lr, steps, loss=loss)
        case "anil":
            return fastmeta.ANIL(encoder, head, lr, steps, loss=loss)
        case "reptile":
            return fastmeta.Reptile(model, lr, steps, loss=loss)
        case "imaml":
            return fastmeta.IMAML(model, lr, steps, loss=loss)
        case "proto-maml":
            return fastmeta.ProtoMAML(encoder, args.ways, lr, steps)
        case "leo":
            return fastmeta.LEO(few_shot.SIDE**2, num_classes=args.ways)
        case "matching-net":
            return fastmeta.MatchingNet(encoder)
    return fastmeta.ProtoNet(encoder, metric="sqeuclidean")

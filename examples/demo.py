"""The demo: trains MAML, Meta-SGD and ProtoNet for half a minute, prints a table and draws pictures.

Sinusoid regression by MAML and Meta-SGD, then 5-way 1-shot character recognition by ProtoNet (Conv4) and by MAML (a
small MLP). Every meta-iteration is timed with fastmeta and with its reference, plain PyTorch, and in JAX where it is installed.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import NamedTuple

import few_shot
import figures
import in_jax
import learners
import sinusoid
import torch
import torch.nn.functional as F
from common import (
    JAX_HEADER,
    TIMING_HEADER,
    Estimate,
    Learner,
    Sample,
    Timing,
    arguments,
    print_table,
    race,
    run,
    train,
)
from torch import Tensor

import fastmeta

WAYS, SHOTS, QUERIES = 5, 1, 5  # of the characters
POINTS = 10  # support points of a sinusoid
NAMES = {"maml": "MAML", "meta-sgd": "Meta-SGD", "protonet": "ProtoNet"}
UNSEEN_SINUSOIDS, UNSEEN_EPISODES = 1000, 600


class Trained(NamedTuple):
    problem: str
    name: str
    learner: Learner
    losses: list[float]
    timing: Timing
    quality: str = ""


def fit(problem: str, name: str, learner: Learner, sample: Sample, *, steps: int, lr: float, rounds: int) -> Trained:
    label = f"{problem}, {NAMES[name]}"
    timing = race(learner, sample, rounds=min(steps, rounds), label=label, jax=in_jax.installed() and on_cpu(learner))
    losses = train(learner, sample, steps=steps, lr=lr, label=label)
    return Trained(problem, NAMES[name], learner, losses, timing)


def on_cpu(learner: Learner) -> bool:
    return next(learner.parameters()).device.type == "cpu"


def fit_sinusoid(name: str, args: argparse.Namespace) -> Trained:
    learner = learners.build(name, model="sinusoid", inner_lr=0.01).to(args.device)
    sample = sinusoid.sampler(tasks=25, shots=POINTS, seed=args.seed, device=args.device)
    trained = fit("sinusoid", name, learner, sample, steps=args.steps or 20_000, lr=1e-3, rounds=200)
    unseen = sinusoid.unseen_tasks(UNSEEN_SINUSOIDS, POINTS, args.device)
    error = Estimate.of(sinusoid.errors(learner, unseen, steps=1))
    return trained._replace(quality=f"MSE {error:.3f}")


def fit_protonet(images: tuple[Tensor, Tensor], args: argparse.Namespace) -> Trained:
    training, test = images
    learner = learners.build("protonet").to(args.device)
    sample = few_shot.sampler(training, tasks=4, ways=WAYS, shots=SHOTS, queries=QUERIES, seed=args.seed)
    trained = fit(args.data, "protonet", learner, sample, steps=args.steps or 400, lr=1e-3, rounds=30)
    return trained._replace(quality=accuracy(learner, test))


def fit_maml(images: tuple[Tensor, Tensor], args: argparse.Namespace) -> Trained:
    """On images of half the size, which an MLP learns from as well as from the full ones."""
    training, test = map(halved, images)
    size = test.shape[-1]
    learner = learners.build("maml", ways=WAYS, model="mlp", hidden=256, size=size).to(args.device)
    sample = few_shot.sampler(training, tasks=16, ways=WAYS, shots=SHOTS, queries=QUERIES, seed=args.seed)
    trained = fit(args.data, "maml", learner, sample, steps=args.steps or 4000, lr=2e-3, rounds=30)
    return trained._replace(quality=accuracy(learner, test))


def halved(images: Tensor) -> Tensor:
    """uint8 [classes, examples, 1, h, w] -> [classes, examples, 1, h / 2, w / 2]."""
    return F.avg_pool2d(images.flatten(0, 1).float(), 2).round().to(torch.uint8).unflatten(0, images.shape[:2])


def accuracy(learner: Learner, images: Tensor) -> str:
    found = few_shot.accuracies(learner, images, tasks=UNSEEN_EPISODES, ways=WAYS, shots=SHOTS, queries=QUERIES)
    return f"accuracy {Estimate.of(found):.1f} %"


@torch.no_grad()
def draw_fits(path: Path, sinusoids: list[Trained], args: argparse.Namespace) -> None:
    """The first unseen tasks, fitted by each learner."""
    tasks = sinusoid.unseen_tasks(2, POINTS, args.device)
    panels = []
    for task in range(2):
        support_x, support_y, query_x, query_y = (z[task : task + 1] for z in tasks)
        order = query_x[0, :, 0].argsort()
        for trained in sinusoids:
            assert isinstance(trained.learner, fastmeta.MAML)
            steps = (0, 1, 10) if trained.name == "MAML" else (0, 1)  # the rates of Meta-SGD are learned for one step
            found = {k: learners.after(trained.learner, k)(support_x, support_y, query_x)[0, order, 0] for k in steps}
            curves = {f"after {k} step{'s' * (k != 1)}" if k else "before": y.cpu() for k, y in found.items()}
            support = (support_x[0, :, 0].cpu(), support_y[0, :, 0].cpu())
            grid, truth = (z[0, order, 0].cpu() for z in (query_x, query_y))
            panels.append(figures.Fit(f"{trained.name}, unseen task {task + 1}", support, grid, truth, curves))
    figures.fits(path, panels)


@torch.no_grad()
def draw_episode(path: Path, protonet: Trained, images: Tensor) -> None:
    sample = few_shot.sampler(images, tasks=1, ways=WAYS, shots=SHOTS, queries=QUERIES, seed=few_shot.TEST_SEED)
    support_x, support_y, query_x, _ = sample()
    log_probs = protonet.learner(support_x, support_y, query_x)[0].unflatten(0, (WAYS, QUERIES))
    title = f"{protonet.name} on unseen {protonet.problem}, {WAYS}-way {SHOTS}-shot"
    figures.episode(path, title, support_x[0].cpu(), query_x[0].unflatten(0, (WAYS, QUERIES)).cpu(), log_probs.cpu())


def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    images = few_shot.load(args)
    args.out.mkdir(parents=True, exist_ok=True)
    sinusoids = [fit_sinusoid(name, args) for name in ("maml", "meta-sgd")]
    characters = [fit_protonet(images, args), fit_maml(images, args)]
    everything = sinusoids + characters

    draw_fits(args.out / "sinusoid.png", sinusoids, args)
    draw_episode(args.out / "episode.png", characters[0], images[1])
    curves = [{t.name: t.losses for t in group} for group in (sinusoids, characters)]
    panels = {
        f"sinusoid, {POINTS} shots": ("query MSE after one step", curves[0], None),
        f"{args.data}, {SHOTS}-shot": ("query cross-entropy (nats)", curves[1], math.log(WAYS)),
    }
    figures.learning_curves(args.out / "learning.png", panels)
    figures.speedups(args.out / "speedup.png", {f"{t.problem}, {t.name}": t.timing for t in everything})

    rows = [[t.problem, t.name, t.quality, *t.timing.columns()] for t in everything]
    print()
    header = [*TIMING_HEADER, *(JAX_HEADER if sinusoids[0].timing.jax else [])]
    print_table(["problem", "learner", "on unseen tasks (95 % CI)", *header], rows)
    print(f"\nTimes are of one meta-iteration. {time.perf_counter() - start:.0f} s in all; pictures in {args.out}/")


if __name__ == "__main__":
    parser = arguments(__doc__, steps=None)
    few_shot.data_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the pictures")
    run(parser, main)

"""More support features for a new class, made from its one or five examples: does a classifier of frozen features get better by them?

An encoder is trained by ProtoNet's episodes and then frozen. On its features of the training classes a conditional VAE and a GAN learn how
the examples x of a class lie about the mean c of one or of five others. Of a new class both draw --made features for each class from its
support, and a classifier is fitted on the real ones and these: the nearest class mean (fastmeta.heads), or softmax regression, which all
tasks fit in one native call (mlp_adapt). "gaussian" draws from c with the covariance of the training classes about such means, without
any network: what the other two must beat.

VAE: Kingma and Welling 2014, arXiv:1312.6114, conditional on c as in Schwartz et al. 2018, arXiv:1806.04734, its noise that of Rybkin et
al. 2021, arXiv:2006.13202. GAN: hinge loss with spectral normalisation, Miyato et al. 2018, arXiv:1802.05957.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import few_shot
import heads
import learners
import omniglot
import records
import torch
from common import Estimate, arguments, count, mlp, print_table, run
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import fastmeta
from fastmeta.heads import NearestClassMean

WAYS, SHOTS, QUERIES = 5, (1, 5), 5
LATENTS, WIDTH, BATCH = 16, 128, 256
KEY = ("data", "made", "classifier", "shots", "seed")
Make = Callable[[Tensor, int], Tensor]  # [..., D] means of a support, M -> [..., M, D] features


def pairs(features: Tensor, shots: int) -> tuple[Tensor, Tensor]:
    """Of a batch of classes of [C, n, D] the mean of so many examples, and another example, both [BATCH, D]."""
    classes = torch.randint(len(features), (BATCH, 1))
    drawn = features[classes, torch.rand(BATCH, features.shape[1]).argsort(1)[:, : shots + 1]]  # [BATCH, shots + 1, D]
    return drawn[:, :-1].mean(1), drawn[:, -1]


class VAE(nn.Module):
    """x = c + decoder(z, c) + noise, the noise as large as the decoder's error."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.encoder = mlp(2 * features, WIDTH, WIDTH, 2 * LATENTS)
        self.decoder = mlp(features + LATENTS, WIDTH, WIDTH, features)
        self.register_buffer("noise", torch.ones(()))

    def fit(self, features: Tensor, shots: int, steps: int) -> None:
        optimiser = fastmeta.optim.Adam(self.parameters(), 1e-3)
        for _ in range(steps):
            c, x = pairs(features, shots)
            mean, log_std = self.encoder(torch.cat([x, c], 1)).chunk(2, 1)
            z = mean + log_std.exp() * torch.randn_like(mean)
            error = (self.decoded(c, z) - x).square().mean()
            kl = (0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std).sum(1).mean()
            optimiser.zero_grad()
            (0.5 * x.shape[1] * error.log() + kl).backward()
            optimiser.step()
            self.noise.lerp_(error.detach().sqrt(), 0.05)

    def decoded(self, c: Tensor, z: Tensor) -> Tensor:
        return c + self.decoder(torch.cat([z, c], -1))

    def make(self, c: Tensor, made: int) -> Tensor:
        c = c[..., None, :].expand(*c.shape[:-1], made, c.shape[-1])
        return self.decoded(c, torch.randn(*c.shape[:-1], LATENTS)) + self.noise * torch.randn_like(c)


class GAN(nn.Module):
    """x = c + generator(z, c); a critic sees x - c and c."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.generator = mlp(features + LATENTS, WIDTH, WIDTH, features)
        layers = [spectral_norm(nn.Linear(*sizes)) for sizes in ((2 * features, WIDTH), (WIDTH, WIDTH), (WIDTH, 1))]
        self.critic = nn.Sequential(layers[0], nn.LeakyReLU(0.2), layers[1], nn.LeakyReLU(0.2), layers[2])

    def fit(self, features: Tensor, shots: int, steps: int) -> None:
        generator, critic = (
            torch.optim.Adam(net.parameters(), 2e-4, (0.0, 0.9)) for net in (self.generator, self.critic)
        )
        for _ in range(steps):
            c, x = pairs(features, shots)
            made = self.make(c, 1).squeeze(-2)
            real, false = (self.critic(torch.cat([y - c, c], 1)) for y in (x, made.detach()))
            critic.zero_grad()
            ((1 - real).relu() + (1 + false).relu()).mean().backward()
            critic.step()
            generator.zero_grad()
            (-self.critic(torch.cat([made - c, c], 1))).mean().backward()
            generator.step()

    def make(self, c: Tensor, made: int) -> Tensor:
        c = c[..., None, :].expand(*c.shape[:-1], made, c.shape[-1])
        return c + self.generator(torch.cat([torch.randn(*c.shape[:-1], LATENTS), c], -1))


class Gaussian:
    """x - c has the covariance of all training classes together."""

    def __init__(self, features: int) -> None:
        self.root = torch.eye(features)

    def fit(self, features: Tensor, shots: int, steps: int) -> None:
        apart = torch.cat([x - c for c, x in (pairs(features, shots) for _ in range(20))])
        values, vectors = torch.linalg.eigh(apart.T @ apart / len(apart))
        self.root = vectors * values.clamp_min(0).sqrt()

    def make(self, c: Tensor, made: int) -> Tensor:
        return c[..., None, :] + torch.randn(*c.shape[:-1], made, c.shape[-1]) @ self.root.T


MADE: dict[str, Callable[[int], Any] | None] = {"nothing": None, "gaussian": Gaussian, "vae": VAE, "gan": GAN}


def by_class_mean(support: Tensor, labels: Tensor, query: Tensor, query_y: Tensor) -> Tensor:
    """The accuracy of each task, [T]."""
    tasks = zip(support, labels, query, query_y, strict=True)
    return torch.tensor([NearestClassMean().fit(x, y).score(*queries) for x, y, *queries in tasks])


def by_softmax(support: Tensor, labels: Tensor, query: Tensor, query_y: Tensor) -> Tensor:
    """100 steps of gradient descent from 0."""
    start = [support.new_zeros(WAYS, support.shape[-1]), support.new_zeros(WAYS)]
    weights = fastmeta.mlp_adapt(start, 0.1, support, labels, steps=100)
    return (fastmeta.mlp_forward(weights, query).argmax(-1) == query_y).float().mean(1)


CLASSIFIERS = {"class mean": by_class_mean, "softmax": by_softmax}


def with_made(support: Tensor, labels: Tensor, make: Make, made: int) -> tuple[Tensor, Tensor]:
    """The support [T, S, D] and, of each class, `made` features more."""
    drawn = make(fastmeta.prototypes(support, labels, WAYS), made)  # [T, N, M, D]
    more = torch.arange(WAYS).repeat_interleave(made).expand(len(support), -1)
    return torch.cat([support, drawn.flatten(1, 2)], 1), torch.cat([labels, more], 1)


def frozen(args: argparse.Namespace, training: Tensor, test: Tensor) -> tuple[Tensor, Tensor, float]:
    """Features [classes, 20, D] of both, of variance 1 in training, and the seconds of the encoder's training."""
    torch.manual_seed(args.seed)
    encoder, _ = learners.network("conv4", ways=1, hidden=args.hidden, running_statistics=True)
    sample = few_shot.sampler(training, tasks=1, ways=20, shots=1, queries=QUERIES, seed=args.seed)
    start = time.process_time()
    omniglot.descend(fastmeta.ProtoNet(encoder), sample, steps=args.steps, lr=2e-3)
    seconds = time.process_time() - start
    ours, theirs = (heads.features_of(encoder, images) for images in (training, test))
    mean, std = ours.mean(), ours.std()
    return (ours - mean) / std, (theirs - mean) / std, seconds


def of_seed(args: argparse.Namespace, training: Tensor, test: Tensor) -> list[dict[str, Any]]:
    """The rows of one seed."""
    known, unseen, seconds = frozen(args, training, test)
    rows: list[dict[str, Any]] = []
    for name, shots in itertools.product(MADE, SHOTS):
        torch.manual_seed(args.seed)
        kind, start = MADE[name], time.process_time()
        model = kind and kind(known.shape[-1])
        if model is not None:
            model.fit(known, shots, args.generator_steps)
        spent = time.process_time() - start
        sample = few_shot.sampler(
            unseen, tasks=args.eval_tasks, ways=WAYS, shots=shots, queries=QUERIES, seed=few_shot.TEST_SEED
        )
        support, labels, *query = sample()
        if model is not None:
            with torch.no_grad():
                support, labels = with_made(support, labels, model.make, args.made)
        for title, classify in CLASSIFIERS.items():
            accuracy = Estimate.of(100 * classify(support, labels, *query))
            rows.append({
                "data": args.data, "made": name, "classifier": title, "shots": shots, "seed": args.seed,
                "accuracy": [round(x, 2) for x in accuracy], "episodes": args.eval_tasks, "steps": args.steps,
                "generator_steps": args.generator_steps, "encoder_seconds": round(seconds, 1), "seconds": round(spent, 1),
            })  # fmt: skip
    return rows


def main(args: argparse.Namespace) -> None:
    if args.results:
        records.load(args.results)  # a broken one is told before the training
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        kept = records.of(records.load(args.results) if args.results else [], data=args.data, seed=seed)
        if not kept:
            kept = of_seed(argparse.Namespace(**vars(args) | {"seed": seed}), *few_shot.load(args))
            if args.results:
                records.add(args.results, *kept, key=KEY)
        rows += kept
    cells = []
    for shots, classifier, made in itertools.product(SHOTS, CLASSIFIERS, MADE):
        found = [row["accuracy"] for row in records.of(rows, shots=shots, classifier=classifier, made=made)]
        cells.append([f"{shots}", classifier, made, ", ".join(f"{mean:.1f} ± {half:.1f} %" for mean, half in found)])
    print_table(["shots", "classifier", "made", f"5-way accuracy on {args.data}, by seed (95 % CI)"], cells)


def options() -> argparse.ArgumentParser:
    parser = arguments(__doc__, steps=400)
    few_shot.data_arguments(parser)
    parser.set_defaults(data="omniglot", test_alphabets=omniglot.UNSEEN, **omniglot.ARCHIVES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="in place of --seed")
    parser.add_argument("--hidden", type=count, default=32, help="channels of Conv4")
    parser.add_argument("--made", type=count, default=20, help="made features of a class")
    parser.add_argument("--generator-steps", type=count, default=2000, help="steps of the VAE and of the GAN")
    parser.add_argument("--eval-tasks", type=count, default=600, help="unseen episodes to evaluate on")
    parser.add_argument("--results", type=Path, help="file that the figures go into; seeds in it are not run again")
    return parser


if __name__ == "__main__":
    run(options(), main)

"""Dataset distillation through a random window: a few images on which a network trained from new weights learns to read others.

Feng et al. 2024, arXiv:2311.07025 (RaT-BPTT). Every meta-iteration trains a new network on the learned images for a random number of
steps, by Adam or by SGD with momentum, with weight decay. The gradient of its loss on real images goes through the last steps alone.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from common import arguments, count, print_table, run
from letters import Letters, accuracy, cross_entropy, letters, network
from plain import WAYS
from torch import Tensor, nn
from tqdm import trange

import fastmeta

OPTIMISERS = {"adam": partial(fastmeta.Adam, eps=1e-4), "momentum": partial(fastmeta.SGD, momentum=0.9)}


def window_loss(
    way: str, net: nn.Module, learned: Letters, before: int, window: int, optimiser: Any, real: Letters
) -> Tensor:
    """The loss on real images after `before` steps without a gradient and `window` steps with one."""
    loss, params, state = partial(cross_entropy, net), dict(net.named_parameters()), None
    params = {name: p.detach() for name, p in params.items()}
    if before:
        with torch.no_grad():
            params, state = fastmeta.unroll(loss, params, tuple(learned), steps=before, optimiser=optimiser)
    value, _ = WAYS[way](
        loss, params, tuple(learned), steps=window, optimiser=optimiser, state=state,
        outer=lambda params: cross_entropy(net, params, *real),
    )  # fmt: skip
    return value


def distilled(training: Letters, start: Letters, args: argparse.Namespace) -> Letters:
    learned = Letters(start.x.clone().requires_grad_(), start.y)
    optimiser = torch.optim.Adam([learned.x], args.lr)
    inner = OPTIMISERS[args.optimiser](args.rate, weight_decay=args.decay)
    bar = trange(args.steps, desc="distilling", mininterval=0.5)
    for _ in bar:
        net = network(args.classes).to(args.device)
        before = int(torch.randint(args.inner_steps - args.window + 1, ()))
        rows = torch.randint(len(training.x), (args.batch,), device=args.device)
        optimiser.zero_grad()
        real = Letters(*(part[rows] for part in training))
        loss = window_loss(args.way, net, learned, before, args.window, inner, real)
        loss.backward()
        optimiser.step()
        bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    return Letters(learned.x.detach(), learned.y)


def reached(data: Letters, test: Letters, args: argparse.Namespace) -> float:
    """The accuracy of new networks after all steps on `data`."""
    inner, found = OPTIMISERS[args.optimiser](args.rate, weight_decay=args.decay), []
    for _ in range(args.eval_nets):
        net = network(args.classes).to(args.device)
        with torch.no_grad():
            params, _ = fastmeta.unroll(
                (net, "cross_entropy"), net, tuple(data), steps=args.inner_steps, optimiser=inner
            )
        net.load_state_dict(params)
        found.append(accuracy(net, test))
    return sum(found) / len(found)


def main(args: argparse.Namespace) -> None:
    if args.window > args.inner_steps:
        raise ValueError(f"--window must be at most --inner-steps, {args.inner_steps}, got {args.window}")
    training, test = letters(args.classes, args.examples, args.device)
    first = training.x.unflatten(0, (args.classes, -1))[:, : args.per_class].flatten(0, 1)
    real = Letters(first, torch.arange(args.classes, device=args.device).repeat_interleave(args.per_class))
    rows = []
    for name, data in (
        ("real", real),
        ("distilled", distilled(training, real, args)),
        (f"all {len(training.x)}", training),
    ):
        rows.append([name, f"{100 * reached(data, test, args):.1f} %"])
    print(
        f"\n{args.classes} letters, {args.per_class} images of each, a window of {args.window} of {args.inner_steps} steps of "
        f"{args.optimiser} by {args.way}"
    )
    print_table(["trained on images", "accuracy on others"], rows)


if __name__ == "__main__":
    parser = arguments(__doc__, steps=200)
    parser.add_argument("--way", choices=sorted(WAYS), default="unroll", help="to the gradient")
    parser.add_argument("--optimiser", choices=sorted(OPTIMISERS), default="adam", help="of the networks")
    parser.add_argument("--classes", type=count, default=10, help="letters")
    parser.add_argument("--examples", type=count, default=30, help="training images of a letter")
    parser.add_argument("--per-class", type=count, default=1, help="learned images of a letter")
    parser.add_argument("--inner-steps", type=count, default=60, help="steps of a network, at most")
    parser.add_argument("--window", type=count, default=20, help="steps that the gradient goes through")
    parser.add_argument("--rate", type=float, default=0.005, help="of the networks' optimiser")
    parser.add_argument("--decay", type=float, default=5e-4, help="of the networks' weights")
    parser.add_argument("--batch", type=count, default=100, help="real images of a meta-iteration")
    parser.add_argument("--lr", type=float, default=0.02, help="Adam's learning rate for the images")
    parser.add_argument("--eval-nets", type=count, default=5, help="networks that are trained for an accuracy")
    run(parser, main)

"""Dataset distillation by matching training trajectories: a few images, and a rate, on which a network learns what it learns on all.

Cazenavette et al. 2022, arXiv:2203.11932. Experts are trained on the glyphs, and their weights kept after every epoch. A student that
starts from an expert's weights takes some steps on the learned images; it shall end where the expert was some epochs later. The
gradient goes through all of the student's steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import torch
from common import arguments, count, print_table, run
from letters import Letters, Params, accuracy, cross_entropy, letters, network
from plain import WAYS
from torch import Tensor, nn
from tqdm import trange

import fastmeta


def distance(start: Params, target: Params, params: Params) -> Tensor:
    """How far from the target, as a share of where the student began."""
    apart = [sum((of[name] - goal).square().sum() for name, goal in target.items()) for of in (params, start)]
    return apart[0] / apart[1]


def matching(
    way: str, net: nn.Module, start: Params, target: Params, images: Tensor, labels: Tensor, rate: Tensor, steps: int
) -> Tensor:
    """The distance after the student's steps."""
    value, _ = WAYS[way](
        partial(cross_entropy, net), dict(start), (images, labels), steps=steps, optimiser=fastmeta.SGD(rate),
        outer=partial(distance, start, target),
    )  # fmt: skip
    return value


def trained(net: nn.Module, data: Letters, rate: float, epochs: int, batch: int) -> list[Params]:
    """Trains `net`; its weights before each epoch and after the last."""
    optimiser, found = torch.optim.SGD(net.parameters(), rate), []
    for _ in range(epochs):
        found.append({name: p.detach().clone() for name, p in net.named_parameters()})
        for rows in torch.randperm(len(data.x), device=data.x.device).split(batch):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(data.x[rows]), data.y[rows]).backward()
            optimiser.step()
    return [*found, {name: p.detach().clone() for name, p in net.named_parameters()}]


def distilled(
    net: nn.Module, experts: Sequence[Sequence[Params]], start: Tensor, labels: Tensor, args: argparse.Namespace
) -> tuple[Tensor, Tensor]:
    """The images and the rate."""
    images, log_rate = (
        start.clone().requires_grad_(),
        torch.tensor(args.rate, device=start.device).log().requires_grad_(),
    )
    optimiser = torch.optim.Adam([{"params": [images], "lr": args.lr}, {"params": [log_rate], "lr": 0.01}])
    bar = trange(args.steps, desc="distilling", mininterval=0.5)
    for step in bar:
        points = experts[step % len(experts)]
        at = int(torch.randint(len(points) - args.ahead, ()))
        optimiser.zero_grad()
        rate, target = log_rate.exp(), points[at + args.ahead]
        loss = matching(args.way, net, points[at], target, images, labels, rate, args.inner_steps)
        loss.backward()
        optimiser.step()
        if step % 20 == 0:
            bar.set_postfix_str(f"distance {loss.item():.3f}, rate {rate.item():.3f}", refresh=False)
    return images.detach(), log_rate.exp().detach()


def main(args: argparse.Namespace) -> None:
    training, test = letters(args.classes, args.examples, args.device)
    fresh = partial(network, args.classes)
    experts = [trained(fresh().to(args.device), training, args.rate, args.epochs, 32) for _ in range(args.experts)]
    first = training.x.unflatten(0, (args.classes, -1))[:, : args.per_class].flatten(0, 1)
    labels = torch.arange(args.classes, device=args.device).repeat_interleave(args.per_class)
    images, rate = distilled(fresh().to(args.device), experts, first, labels, args)
    rows = []
    for name, x, at in (("real", first, args.rate), ("distilled", images, float(rate))):
        nets = [fresh().to(args.device) for _ in range(5)]
        for net in nets:
            trained(net, Letters(x, labels), at, args.eval_steps, len(x))
        found = torch.tensor([accuracy(net, test) for net in nets])
        rows.append([name, f"{100 * found.mean():.1f} %"])
    net = fresh().to(args.device)
    trained(net, training, args.rate, args.epochs, 32)
    rows.append([f"all {len(training.x)}", f"{100 * accuracy(net, test):.1f} %"])
    print(
        f"\n{args.classes} letters, {args.per_class} images of each, {args.inner_steps} steps by {args.way}, learned rate {rate:.3f}"
    )
    print_table(["trained on images", "accuracy on others"], rows)


if __name__ == "__main__":
    parser = arguments(__doc__, steps=300)
    parser.add_argument("--way", choices=sorted(WAYS), default="unroll", help="to the gradient")
    parser.add_argument("--classes", type=count, default=10, help="letters")
    parser.add_argument("--examples", type=count, default=30, help="training images of a letter")
    parser.add_argument("--per-class", type=count, default=1, help="learned images of a letter")
    parser.add_argument("--inner-steps", type=count, default=20, help="steps of the student")
    parser.add_argument("--experts", type=count, default=5, help="trajectories")
    parser.add_argument("--epochs", type=count, default=12, help="of an expert")
    parser.add_argument(
        "--ahead", type=count, default=2, help="epochs of the expert that the student's steps shall reach"
    )
    parser.add_argument(
        "--rate", type=float, default=0.05, help="of the experts' SGD, and the student's before it is learned"
    )
    parser.add_argument("--lr", type=float, default=0.02, help="Adam's learning rate for the images")
    parser.add_argument("--eval-steps", type=count, default=300, help="steps on the learned images")
    run(parser, main)

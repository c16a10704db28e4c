"""Learning to reweight examples: of noisy labels those count whose gradient helps on a few clean ones.

Ren et al. 2018, arXiv:1803.09050. In every training step, weights 0 of the batch's examples are given a gradient: that of the loss on
clean examples after some steps on the weighted loss. The examples whose weight would grow then train the network.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from common import arguments, count, print_table, run
from letters import Letters, Params, accuracy, cross_entropy, letters, network
from plain import WAYS
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import trange

import fastmeta


def weighted(net: nn.Module, weights: Tensor, params: Params, x: Tensor, y: Tensor) -> Tensor:
    return (weights * F.cross_entropy(functional_call(net, dict(params), (x,)), y, reduction="none")).sum()


def clean_loss(
    way: str, net: nn.Module, weights: Tensor, batch: Letters, clean: Letters, rate: float, steps: int
) -> Tensor:
    """The loss on clean examples. The inner loss closes over the weights; `native` has them as an argument, all steps in one op."""
    optimiser = fastmeta.SGD(rate, momentum=0.9)
    if way == "native":
        support, query = ((part.x.flatten(1), part.y) for part in (batch, clean))
        found: Tensor = fastmeta.mlp_meta_loss(
            list(net.parameters()), None, *support, *query, weights=len(batch.x) * weights, steps=steps, optimiser=optimiser
        )  # fmt: skip
        return found
    value, _ = WAYS[way](
        partial(weighted, net, weights), net, tuple(batch), steps=steps, optimiser=optimiser,
        outer=lambda params: cross_entropy(net, params, *clean),
    )  # fmt: skip
    return value


def weights_of(way: str, net: nn.Module, batch: Letters, clean: Letters, rate: float, steps: int) -> Tensor:
    """[n], of sum 1, or all 0."""
    start = torch.zeros(len(batch.x), device=batch.x.device, requires_grad=True)
    (slope,) = torch.autograd.grad(clean_loss(way, net, start, batch, clean, rate, steps), start)
    found = (-slope).clamp(min=0)
    return found / found.sum().clamp(min=1e-12)


def train(net: nn.Module, data: Letters, clean: Letters | None, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Trains `net`, with weights where there are clean examples; what each example weighed in the second half, and how often it came."""
    optimiser = torch.optim.SGD(net.parameters(), args.lr, momentum=0.9)
    total, drawn = torch.zeros(2, len(data.x), device=data.x.device)
    for step in trange(args.steps, desc="reweighted" if clean else "plain", mininterval=0.5):
        rows = torch.randint(len(data.x), (args.batch,), device=data.x.device)
        batch = Letters(data.x[rows], data.y[rows])
        weights = torch.full((args.batch,), 1 / args.batch, device=data.x.device)
        if clean is not None:
            weights = weights_of(args.way, net, batch, clean, args.lr, args.inner_steps)
        optimiser.zero_grad()
        weighted(net, weights, dict(net.named_parameters()), *batch).backward()
        optimiser.step()
        if 2 * step >= args.steps:
            total.index_add_(0, rows, weights)
            drawn.index_add_(0, rows, torch.ones_like(weights))
    return total, drawn


def roc(scores: Tensor, noisy: Tensor) -> tuple[float, float]:
    """How well low scores tell the noisy examples: the area under the curve of those found over those wrongly taken, that is the
    chance that a noisy one scores less than another, ties as a half; and the share found where 5 % of the others are taken too."""
    low, high = scores[noisy].sort().values, scores[~noisy].sort().values
    below, up_to = torch.searchsorted(high, low), torch.searchsorted(high, low, right=True)
    area = 1 - (below + up_to).double().mean() / (2 * len(high))
    return area.item(), (below <= 0.05 * len(high)).double().mean().item()


def main(args: argparse.Namespace) -> None:
    training, test = letters(args.classes, args.examples, args.device)
    first = torch.arange(len(training.x), device=args.device) % args.examples < args.clean
    clean, rest = (Letters(*(part[rows] for part in training)) for rows in (first, ~first))
    noisy = torch.rand(len(rest.y), device=args.device) < args.noise
    wrong = (rest.y + torch.randint(1, args.classes, rest.y.shape, device=args.device)) % args.classes
    data = Letters(rest.x, torch.where(noisy, wrong, rest.y))
    rows = []
    for name, known in (("plain", None), ("reweighted", clean)):
        net = network(args.classes).to(args.device)
        total, drawn = train(net, data, known, args)
        seen = drawn > 0
        area, found = roc((total / drawn)[seen], noisy[seen])
        share = total[noisy].sum() / total.sum()
        rows.append([name, f"{100 * accuracy(net, test):.1f} %", f"{100 * share:.1f} %"])
        rows[-1] += [f"{area:.3f}", f"{100 * found:.0f} %"] if known else ["-", "-"]
    print(
        f"\n{args.classes} letters, {100 * args.noise:.0f} % of the labels wrong, {args.clean} clean examples of each, by {args.way}"
    )
    print_table(["training", "accuracy on others", "weight of wrong labels", "ROC area", "found at 5 % false"], rows)


if __name__ == "__main__":
    parser = arguments(__doc__, steps=600)
    parser.add_argument("--way", choices=["native", *sorted(WAYS)], default="unroll", help="to the gradient")
    parser.add_argument("--classes", type=count, default=10, help="letters")
    parser.add_argument("--examples", type=count, default=200, help="training images of a letter")
    parser.add_argument("--clean", type=count, default=10, help="of them whose labels are right")
    parser.add_argument("--noise", type=float, default=0.4, help="share of the other labels that are wrong")
    parser.add_argument("--inner-steps", type=count, default=3, help="steps of the look-ahead")
    parser.add_argument("--batch", type=count, default=100, help="examples of a step")
    parser.add_argument("--lr", type=float, default=0.02, help="of SGD")
    run(parser, main)

"""Images as modulations of one sine network, which maps a place to a brightness: each image shifts the network's layers.

Dupont et al. 2022, arXiv:2201.12204; Sitzmann et al. 2020, arXiv:2006.09661. A few steps of SGD fit an image's shifts from 0; the
training learns the network that they shift, and a rate for each step. Test images are of scripts that it has not seen.
"""

from __future__ import annotations

import argparse

import few_shot
import torch
from common import Estimate, arguments, count, print_table, run
from plain import WAYS
from torch import Tensor, nn
from tqdm import trange

import fastmeta


class Sines(nn.Module):
    """Places [n, 2] and shifts [T, layers, width] -> brightness [T, n]."""

    def __init__(self, layers: int = 3, width: int = 64, frequency: float = 30.0) -> None:
        super().__init__()
        widths = [2, *[width] * layers]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.head, self.frequency = nn.Linear(width, 1), frequency
        for layer in (*self.layers, self.head):  # SIREN's: outputs of all layers are alike spread
            bound = 1 / 2 if layer.in_features == 2 else (6 / width) ** 0.5 / frequency
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, places: Tensor, shifts: Tensor) -> Tensor:
        x = places
        for layer, shift in zip(self.layers, shifts.unbind(1), strict=True):
            x = (self.frequency * (layer(x) + shift[:, None])).sin()
        return self.head(x).squeeze(-1) + 0.5


def places_of(side: int) -> Tensor:
    """[side^2, 2], in [-1, 1]."""
    line = torch.linspace(-1, 1, side)
    return torch.cartesian_prod(line, line)


def errors(way: str, net: Sines, rates: Tensor, images: Tensor, places: Tensor) -> Tensor:
    """The mean squared error on each image, [T], after a step at each of the rates."""
    shifts = {"shifts": images.new_zeros(len(images), len(net.layers), net.head.in_features)}

    def error(params: dict[str, Tensor]) -> Tensor:
        return (net(places, params["shifts"]) - images).square().mean(1)

    found, _ = WAYS[way](
        error, shifts, (), steps=len(rates), optimiser=fastmeta.SGD(rates), outer=error, tasks=True
    )  # fmt: skip
    return found


@torch.no_grad()
def psnr(net: Sines, rates: Tensor, images: Tensor, places: Tensor) -> Tensor:
    """In dB, of each image."""
    parts = [errors("unroll", net, rates, part, places) for part in images.split(64)]
    return -10 * torch.cat(parts).log10()


def main(args: argparse.Namespace) -> None:
    training, test = (images.flatten(0, 1).flatten(1) for images in few_shot.load(args, args.size))
    test = test[torch.randperm(len(test), device=args.device)[: args.eval_images]].float() / 255
    places, net = places_of(args.size).to(args.device), Sines(width=args.width).to(args.device)
    log_rates = torch.full((args.inner_steps,), args.rate, device=args.device).log().requires_grad_()
    optimiser = torch.optim.Adam([{"params": net.parameters()}, {"params": [log_rates], "lr": 0.01}], args.lr)
    rows = []

    def evaluate(name: str) -> None:
        without = psnr(net, torch.zeros(1, device=args.device), test, places)
        after = psnr(net, log_rates.exp(), test, places)
        rows.append([name, *(f"{Estimate.of(found):.2f}" for found in (without, after))])

    evaluate("no")
    bar = trange(args.steps, desc="training", mininterval=0.5)
    for step in bar:
        images = training[torch.randint(len(training), (args.batch,), device=args.device)].float() / 255
        optimiser.zero_grad()
        loss = errors(args.way, net, log_rates.exp(), images, places).mean()
        loss.backward()
        optimiser.step()
        if step % 20 == 0:
            bar.set_postfix_str(f"error {loss.item():.4f}", refresh=False)
    evaluate("yes")
    print(f"\n{args.eval_images} images of {args.data} from other scripts, {args.size} x {args.size}, by {args.way}")
    print_table(["trained", "PSNR with shifts 0 (95 % CI)", f"after {args.inner_steps} steps"], rows)


if __name__ == "__main__":
    parser = arguments(__doc__, steps=400)
    few_shot.data_arguments(parser)
    parser.add_argument("--way", choices=sorted(WAYS), default="unroll", help="to the gradient")
    parser.add_argument("--size", type=count, default=20, help="pixels a side")
    parser.add_argument("--width", type=count, default=64, help="of the network's three layers")
    parser.add_argument("--inner-steps", type=count, default=3, help="steps that fit an image")
    parser.add_argument("--rate", type=float, default=0.1, help="of every step at first")
    parser.add_argument("--batch", type=count, default=16, help="images of a meta-iteration")
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's learning rate for the network")
    parser.add_argument("--eval-images", type=count, default=256, help="unseen images to evaluate on")
    run(parser, main)

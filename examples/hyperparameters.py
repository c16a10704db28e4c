"""A weight decay and a learning rate for each layer, learned: the gradient of the loss on held-out data goes through all steps of a
training by SGD with momentum.

Maclaurin et al. 2015, arXiv:1502.03492. A third of the training labels are wrong. Every meta-iteration trains a network from new
weights and changes the logarithms of decays and rates by Adam.
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import fmean

import torch
from common import arguments, count, mlp, print_table, run
from letters import Letters, Params, accuracy, cross_entropy, letters
from plain import WAYS
from torch import Tensor, nn
from tqdm import trange

import fastmeta

Logs = dict[str, Tensor]  # of a number for each layer, by the layer's name


def network(classes: int, width: int = 64) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *mlp(784, width, width, classes))


def starting_at(value: float, net: nn.Module) -> Logs:
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Linear)}
    return {name: layer.weight.new_tensor(value).log().requires_grad_() for name, layer in layers.items()}


def optimiser_of(rates: Logs, decays: Logs, net: nn.Module) -> fastmeta.SGD:
    """Weight and bias of a layer share its numbers."""
    of = {name: name.rpartition(".")[0] for name, _ in net.named_parameters()}
    rate, decay = ({name: logs[layer].exp() for name, layer in of.items()} for logs in (rates, decays))
    return fastmeta.SGD(rate, momentum=0.9, weight_decay=decay)


def held_out_loss(
    way: str, net: nn.Module, start: Params, batches: list[Letters], rates: Logs, decays: Logs, held_out: Letters
) -> Tensor:
    """The loss on held-out data after a step on each batch."""
    value, _ = WAYS[way](
        partial(cross_entropy, net), start, batches, optimiser=optimiser_of(rates, decays, net),
        outer=lambda params: cross_entropy(net, params, *held_out),
    )  # fmt: skip
    return value


def drawn(data: Letters, batch: int, steps: int) -> list[Letters]:
    rows = torch.randint(len(data.x), (steps, batch), device=data.x.device)
    return [Letters(data.x[some], data.y[some]) for some in rows]


def learn(training: Letters, held_out: Letters, rates: Logs, decays: Logs, args: argparse.Namespace) -> None:
    optimiser = torch.optim.Adam([*rates.values(), *decays.values()], args.lr)
    bar = trange(args.steps, desc="learning", mininterval=0.5)
    for _ in bar:
        net = network(args.classes).to(args.device)
        start = {name: p.detach() for name, p in net.named_parameters()}
        batches = drawn(training, args.batch, args.inner_steps)
        optimiser.zero_grad()
        loss = held_out_loss(args.way, net, start, batches, rates, decays, held_out)
        loss.backward()
        optimiser.step()
        bar.set_postfix_str(f"held-out loss {loss.item():.3f}", refresh=False)


def trained(training: Letters, rates: Logs, decays: Logs, args: argparse.Namespace) -> nn.Module:
    """A new network after the same number of steps."""
    net = network(args.classes).to(args.device)
    with torch.no_grad():
        params, _ = fastmeta.unroll(
            partial(cross_entropy, net), net, drawn(training, args.batch, args.inner_steps),
            optimiser=optimiser_of(rates, decays, net),
        )  # fmt: skip
        net.load_state_dict(params)
    return net


def main(args: argparse.Namespace) -> None:
    given, test = letters(args.classes, args.examples, args.device)
    held = torch.arange(len(given.x), device=args.device) % 2 == 1
    training, held_out = (Letters(*(part[rows] for part in given)) for rows in (~held, held))
    wrong = torch.rand(len(training.y), device=args.device) < args.noise
    others = (training.y + torch.randint(1, args.classes, training.y.shape, device=args.device)) % args.classes
    training = Letters(training.x, torch.where(wrong, others, training.y))

    net = network(args.classes).to(args.device)
    rates, decays = (starting_at(value, net) for value in (args.rate, args.decay))
    rows = []
    for name in ("as given", "learned"):
        if name == "learned":
            learn(training, held_out, rates, decays, args)
        numbers = [" ".join(f"{log.exp():.2g}" for log in logs.values()) for logs in (rates, decays)]
        nets = [trained(training, rates, decays, args) for _ in range(args.eval_nets)]
        loss = fmean(cross_entropy(net, dict(net.named_parameters()), *test).item() for net in nets)
        right = fmean(accuracy(net, test) for net in nets)
        rows.append([name, *numbers, f"{loss:.3f}", f"{100 * right:.1f} %"])
    print(
        f"\n{args.classes} letters, {100 * args.noise:.0f} % of the labels wrong, {args.inner_steps} steps by {args.way}"
    )
    print_table(["hyperparameters", "rates", "decays", "loss on others", "accuracy"], rows)


if __name__ == "__main__":
    parser = arguments(__doc__, steps=150)
    parser.add_argument("--way", choices=sorted(WAYS), default="unroll", help="to the gradient")
    parser.add_argument("--classes", type=count, default=10, help="letters")
    parser.add_argument("--examples", type=count, default=40, help="of a letter; every second one is held out")
    parser.add_argument("--noise", type=float, default=0.33, help="share of the training labels that are wrong")
    parser.add_argument("--inner-steps", type=count, default=60, help="steps of a training")
    parser.add_argument("--batch", type=count, default=100, help="examples of a step")
    parser.add_argument("--rate", type=float, default=0.05, help="of every layer at first")
    parser.add_argument("--decay", type=float, default=5e-4, help="of every layer at first")
    parser.add_argument("--lr", type=float, default=0.1, help="Adam's learning rate for the logarithms")
    parser.add_argument("--eval-nets", type=count, default=10, help="networks that are trained for an accuracy")
    run(parser, main)

"""MAML++'s inner loop with a batch a step: each step sees other support images, the query loss after each step counts, and each
layer has a learned rate for each step.

Antoniou et al. 2019, arXiv:1810.09502. The weights of the steps' losses begin equal and go over to the last step alone. Beside it MAML
on the same batches: one rate, which stays, and the last loss. The scripts of the test are not seen in training.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import few_shot
import torch
import torch.nn.functional as F
from common import Estimate, Sample, arguments, conv4, count, print_table, run
from letters import Params
from plain import WAYS
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import trange

import fastmeta
from fastmeta.data import Episodes


def network(ways: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(*conv4(hidden, track_running_stats=False), nn.Linear(hidden, ways))


def rates_of(net: nn.Module, rate: float, steps: int) -> dict[str, Tensor]:
    """[K, 1, ...] for each parameter: one in each step."""
    return {name: torch.full((steps, *[1] * p.ndim), rate).to(p) for name, p in net.named_parameters()}


def scores(net: nn.Module, params: Params, x: Tensor) -> Tensor:
    """[T, n, N], of each task by its own parameters."""
    return torch.vmap(partial(functional_call, net))(dict(params), x)


def loss(net: nn.Module, params: Params, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores(net, params, x).mT, y, reduction="none").mean(1)


def adapt(way: str, net: nn.Module, rates: dict[str, Tensor], tasks: Episodes, outer: Any = None) -> Any:
    """The parameters of each task, or what `outer` makes of them. Step k learns from the k-th image of each class."""
    steps = len(next(iter(rates.values())))
    x, y = (part.unflatten(1, (-1, steps)).unbind(2) for part in (tasks.support_x, tasks.support_y))  # K of [T, N, ...]
    found, _ = WAYS[way](
        partial(loss, net),
        net,
        list(zip(x, y, strict=True)),
        optimiser=fastmeta.SGD(rates),
        outer=outer,
        tasks=len(x[0]),
    )
    return found


def query_losses(way: str, net: nn.Module, rates: dict[str, Tensor], counts: list[bool], tasks: Episodes) -> Tensor:
    """[K, T]: of each task after each step, 0 where it does not count."""
    outer = partial(loss, net, x=tasks.query_x, y=tasks.query_y)
    return adapt(way, net, rates, tasks, [outer if count else None for count in counts])


def weights_at(progress: float, steps: int) -> Tensor:
    """[K], of sum 1: equal at first, the last alone from a third of the training on."""
    last = torch.zeros(steps)
    last[-1] = 1
    return torch.lerp(torch.full((steps,), 1 / steps), last, min(1.0, 3 * progress))


def train(net: nn.Module, rates: dict[str, Tensor], plus: bool, sample: Sample, args: argparse.Namespace) -> None:
    groups = [{"params": list(net.parameters())}]
    if plus:
        groups.append({"params": [rate.requires_grad_() for rate in rates.values()]})
    optimiser = torch.optim.Adam(groups, args.lr)
    bar = trange(args.steps, desc="MAML++" if plus else "MAML", mininterval=0.5)
    for step in bar:
        weights = weights_at(step / args.steps if plus else 1.0, args.inner_steps).to(args.device)
        optimiser.zero_grad()
        losses = query_losses(args.way, net, rates, (weights > 0).tolist(), sample())
        (weights @ losses).mean().backward()
        optimiser.step()
        if step % 20 == 0:
            bar.set_postfix_str(f"loss {losses[-1].mean().item():.3f}", refresh=False)


@torch.no_grad()
def accuracies(net: nn.Module, rates: dict[str, Tensor], sample: Sample, args: argparse.Namespace) -> Tensor:
    """The share of right answers after the last step, in percent, of each unseen task."""
    found = []
    for _ in range(0, args.eval_tasks, args.tasks):
        tasks = sample()
        answers = scores(net, adapt("unroll", net, rates, tasks), tasks.query_x).argmax(-1)
        found.append(100 * (answers == tasks.query_y).float().mean(1))
    return torch.cat(found)[: args.eval_tasks]


def main(args: argparse.Namespace) -> None:
    sizes = {"tasks": args.tasks, "ways": args.ways, "shots": args.inner_steps, "queries": args.queries}
    training, test = few_shot.load(args)
    rows = []
    for name, plus in (("MAML", False), ("MAML++", True)):
        torch.manual_seed(args.seed)  # both begin alike
        net = network(args.ways, args.hidden).to(args.device)
        rates = rates_of(net, args.rate, args.inner_steps)
        unseen = [few_shot.sampler(test, seed=few_shot.TEST_SEED, **sizes) for _ in range(2)]
        before = accuracies(net, rates, unseen[0], args)
        train(net, rates, plus, few_shot.sampler(training, seed=args.seed, **sizes), args)
        after = accuracies(net, rates, unseen[1], args)
        rows.append([name, *(f"{Estimate.of(found):.1f} %" for found in (before, after))])
    print(f"\n{args.ways}-way {args.data}, {args.inner_steps} steps with an image of each class, by {args.way}")
    print_table(["inner loop", "accuracy before (95 % CI)", "after training"], rows)


if __name__ == "__main__":
    parser = arguments(__doc__, steps=150)
    few_shot.data_arguments(parser)
    parser.add_argument("--way", choices=sorted(WAYS), default="unroll", help="to the gradient")
    parser.add_argument("--ways", type=count, default=5, help="classes of a task")
    parser.add_argument("--inner-steps", type=count, default=5, help="steps, and support images of a class")
    parser.add_argument("--hidden", type=count, default=16, help="channels of Conv4")
    parser.add_argument("--queries", type=count, default=5, help="query images of a class")
    parser.add_argument("--tasks", type=count, default=4, help="tasks of a meta-iteration")
    parser.add_argument("--rate", type=float, default=0.1, help="of every step and layer at first")
    parser.add_argument("--lr", type=float, default=2e-3, help="Adam's learning rate, for the rates too")
    parser.add_argument("--eval-tasks", type=count, default=200, help="unseen tasks to evaluate on")
    run(parser, main)

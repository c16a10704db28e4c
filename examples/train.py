"""Trains any learner on any data, in one process or many: validation, early stop, a log, and checkpoints to resume from.

python examples/train.py --learner maml --data sinusoid --out runs/maml
torchrun --standalone --nproc-per-node 4 --max-restarts 3 examples/train.py --learner protonet --out runs/protonet --resume

The processes share the tasks of every meta-iteration: their number changes rounding, the noise of random layers (LEO's), and
what batch norm averages over in ProtoNet and MatchingNet, nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import checkpoint
import few_shot
import learners
import persist
import problem
import ranks
import torch
import torch.distributed as dist
from common import Estimate, Learner, adam, arguments, count, run
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import fastmeta
from fastmeta.data import TaskSampler
from fastmeta.data.task_sampler import Draw

NOTHING = contextlib.nullcontext()
VALIDATION_SEED, TEST_SEED = 1_000_003, 2_000_003  # of their tasks
FIXED = (  # what a resumed training has in common with its checkpoint
    *("learner", "data", "model", "hidden", "ways", "shots", "queries", "tasks"),
    *("size", "channels", "inner_lr", "inner_steps", "lr", "seed"),
)


class Training:
    """What a checkpoint holds: learner, optimiser, the place in the tasks, random states, the best validation so far."""

    def __init__(self, args: argparse.Namespace, data: problem.Data) -> None:
        self.settings = {name: getattr(args, name) for name in FIXED}
        self.learner = problem.build(args).to(args.device)
        self.model = DistributedDataParallel(self.learner) if dist.is_initialized() else self.learner
        self.optimiser = adam(self.learner, args.lr)
        self.sampler = TaskSampler(data.training, args.tasks, seed=args.seed)
        self.step, self.best, self.waited = 0, math.nan, 0  # waited: validations since the best
        self.log: dict[str, int] | None = None  # how far the log goes, see persist.Log
        torch.manual_seed(args.seed + 1_000_003 * self.sampler.rank)  # of random layers: another noise on every rank

    def left(self, args: argparse.Namespace) -> int:
        """Steps to go, at most."""
        return 0 if args.patience and self.waited >= args.patience else max(0, args.steps - self.step)

    def judge(self, error: float) -> bool:
        """Whether this is the best validation so far."""
        better = math.isnan(self.best) or error < self.best
        self.best, self.waited = (error, 0) if better else (self.best, self.waited + 1)
        return better

    def state_dict(self) -> dict[str, Any]:
        """Called by all ranks."""
        return {
            "settings": self.settings, "step": self.step, "best": self.best, "waited": self.waited,
            "learner": self.learner.state_dict(), "optimiser": self.optimiser.state_dict(),
            "sampler": self.sampler.state_dict(), "noise": ranks.of_all(ranks.noise()), "log": self.log,
        }  # fmt: skip

    def load_state_dict(self, state: Any, path: Path) -> None:
        """`path`: where it comes from. With another number of ranks random layers draw other numbers."""
        self.check(state, path)
        self.step, self.best, self.waited, self.log = (state[name] for name in ("step", "best", "waited", "log"))
        self.learner.load_state_dict(state["learner"])
        groups = self.optimiser.state_dict()["param_groups"]  # the settings are the same
        self.optimiser.load_state_dict({"state": state["optimiser"]["state"], "param_groups": groups})
        self.sampler.load_state_dict(state["sampler"])
        if len(state["noise"]) == self.sampler.world_size:
            ranks.set_noise(state["noise"][self.sampler.rank])

    def check(self, state: Any, path: Path) -> None:
        """ValueError unless this training could have come to it."""
        names = ("settings", "step", "best", "waited", "learner", "optimiser", "sampler", "noise", "log")
        checkpoint.keys(path, "a training", state, names)
        checkpoint.keys(path, "settings", state["settings"], self.settings)
        for name, value in self.settings.items():
            if not checkpoint.same(value, state["settings"][name]):
                option = "--" + name.replace("_", "-")
                raise ValueError(
                    f"--resume: {option} must be the checkpoint's {state['settings'][name]}, got {value} for {path}"
                )
        checkpoint.number(path, "step", state["step"], 1, 2**62)
        checkpoint.number(path, "waited", state["waited"], 0, state["step"])
        if type(state["best"]) is not float:
            checkpoint.refuse(path, "best that is a number", checkpoint.said(state["best"]))
        place = {"seed": self.sampler.seed, "next": state["step"] * self.sampler.tasks}
        checkpoint.keys(path, "sampler", state["sampler"], place)
        for name, value in place.items():
            checkpoint.equal(path, f"sampler.{name}", value, state["sampler"][name])
        checkpoint.fits(path, "learner", self.learner.state_dict(), state["learner"])
        checkpoint.optimiser(path, self.learner, state["step"], state["optimiser"])
        checkpoint.noise(path, state["noise"])
        checkpoint.keys(path, "log", state["log"], ("bytes", "crc32"))
        for name, most in (("bytes", 2**62), ("crc32", 2**32 - 1)):
            checkpoint.number(path, f"log.{name}", state["log"][name], 0, most)


@torch.no_grad()
def errors(model: Learner, draw: Draw, tasks: int, at_once: int, seed: int) -> Tensor:
    """The wrong answers in percent, or the mean squared error, of each of `tasks` tasks; on all ranks the same, [tasks]."""
    model.eval()
    sampler, found = TaskSampler(draw, at_once, seed=seed), []
    for _ in range(0, tasks, at_once):
        episodes = next(sampler)
        if episodes.query_y.is_floating_point():
            found.append(model(*episodes))
        else:
            wrong = model(*episodes[:3]).argmax(-1) != episodes.query_y
            found.append(100 * wrong.float().mean(1))
    model.train()
    return torch.cat([e.to("cpu") for e in ranks.of_all(torch.stack(found).to("cpu"))], 1).flatten()[:tasks]


def fit(training: Training, data: problem.Data, args: argparse.Namespace) -> None:
    first = training.sampler.rank == 0
    losses: list[Tensor] = []  # since the last validation

    def after(_: int, found: Tensor) -> bool:
        """Every so many steps validation, a line of the log, and a checkpoint; whether the training is over."""
        training.step += 1
        losses.append(found)
        bar.update()
        if training.step % args.every and training.step != args.steps:
            return False
        tasks = (args.validation_tasks, args.tasks, VALIDATION_SEED)
        error = errors(training.model, data.validation, *tasks).mean().item()
        loss = fmean(ranks.of_all(torch.cat(losses).mean().item()))
        losses.clear()
        better, state = training.judge(error), training.state_dict()
        bar.set_postfix_str(f"loss {loss:.3f}, validation {error:.3f}", refresh=False)
        if log is not None:  # the checkpoint last: what it does not know of is done again
            log.add(training.step, loss, error)
            if better:
                persist.save(args.out / "best.pt", state["learner"])
            persist.save(args.out / "checkpoint.pt", state | {"log": log.mark})
        return not training.left(args)

    with (
        persist.Log(args.out, training.step, training.log, args.tensorboard) if first else NOTHING as log,
        tqdm(total=args.steps, initial=training.step, desc=args.learner, disable=not first, mininterval=0.5) as bar,
    ):
        if left := training.left(args):
            fastmeta.fit(training.model, training.sampler, left, optimiser=training.optimiser, callbacks=[after])


def options() -> argparse.ArgumentParser:
    parser = arguments(__doc__, steps=10_000)
    few_shot.data_arguments(parser, "sinusoid", "folder")
    parser.add_argument("--learner", choices=learners.OF_IMAGES, default="protonet", help="which algorithm")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints and of the log")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, if there is one")
    parser.add_argument("--tasks", type=count, default=4, help="tasks of a meta-iteration, of all processes together")
    parser.add_argument("--ways", type=count, default=5, help="images: classes of a task")
    parser.add_argument("--shots", type=count, help="support examples of a class; None: 1, of a sinusoid 10")
    parser.add_argument("--queries", type=count, help="query examples of a class; None: 5, of a sinusoid 10")
    parser.add_argument("--size", type=count, help="images: pixels a side; None: 28, of a folder 84")
    parser.add_argument("--channels", type=int, choices=(1, 3), help="folder: grey or RGB; None: 3")
    parser.add_argument("--model", choices=("conv4", "mlp"), default="conv4", help="images: the network")
    parser.add_argument("--hidden", type=count, default=32, help="channels of Conv4, width of the MLP")
    parser.add_argument("--inner-lr", type=float, help="inner learning rate; None: 0.4, of sinusoids 0.01")
    parser.add_argument("--inner-steps", type=count, default=1, help="inner steps")
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's learning rate")
    parser.add_argument("--every", type=count, default=100, help="steps between validation, log line and checkpoint")
    parser.add_argument(
        "--patience", type=count, help="stop after so many validations without a better one; None: never"
    )
    parser.add_argument("--validation-tasks", type=count, default=100, help="of a validation")
    parser.add_argument("--eval-tasks", type=count, default=600, help="unseen tasks to evaluate the best learner on")
    parser.add_argument("--tensorboard", action="store_true", help="also TensorBoard's files, in --out")
    parser.add_argument(
        "--timeout", type=count, default=300, help="seconds to wait for another process before an error"
    )
    return parser


def best_of(folder: Path) -> Any:
    """The learner of the best validation, as rank 0 finds it."""
    return ranks.of_first(lambda: persist.load(folder / "best.pt"))


def resume(training: Training, args: argparse.Namespace) -> None:
    """Go on from the checkpoint in --out, if there is one; ValueError where it, the log or the best learner is damaged."""
    path = args.out / "checkpoint.pt"

    def found() -> Any:
        if not path.exists():
            return None
        if not args.resume:
            raise ValueError(f"--out must hold no checkpoint, got {path}: --resume goes on with it")
        return persist.load(path)

    state = ranks.of_first(found)
    if state is None:
        return
    training.load_state_dict(state, path)
    checkpoint.fits(args.out / "best.pt", "learner", training.learner.state_dict(), best_of(args.out))
    ranks.of_first(lambda: persist.kept(args.out / "log.csv", training.log))


def train(args: argparse.Namespace) -> None:
    data = problem.load(args)
    training = Training(args, data)
    args.out.mkdir(parents=True, exist_ok=True)
    resume(training, args)
    fit(training, data, args)

    training.learner.load_state_dict(best_of(args.out))
    unseen = Estimate.of(errors(training.model, data.test, args.eval_tasks, args.tasks, TEST_SEED))
    if training.sampler.rank == 0:
        unit = "MSE" if args.data == "sinusoid" else "% wrong"
        print(f"\n{args.learner} on {args.data}, {training.step} steps, best validation {training.best:.3f} {unit}")
        print(f"{args.eval_tasks} unseen tasks: {unseen:.3f} {unit} (95 % CI)")


def main(args: argparse.Namespace) -> None:
    problem.settle(args)
    ranks.start(args.device, args.timeout)
    train(args)
    ranks.finish()


if __name__ == "__main__":
    ranks.own_gpu()
    run(options(), main)

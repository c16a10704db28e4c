"""A training of so many seconds of processor time, so that a shared machine trains as well as an idle one; it goes on from its last
checkpoint, whatever stopped it.

The rate of the meta-optimiser falls to 0 along a cosine of the time spent. Seconds are of all threads of the process together.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import checkpoint
import persist
import ranks
import torch
from common import Learner, meta_step

import fastmeta
from fastmeta.data import TaskSampler

EVERY = 30.0  # seconds of the processor between checkpoints


class Training:
    """What a checkpoint holds: learner, meta-optimiser, the place in the tasks, random states, the seconds spent.

    `outer`: "adam", or "sgd", as in Reptile's paper. `rate_lr`: the rate of Meta-SGD's rates, over that of the other parameters.
    `noise`: the seed of random layers and of jitter.
    """

    def __init__(
        self,
        learner: Learner,
        sampler: TaskSampler,
        *,
        seconds: float,
        lr: float,
        outer: str,
        rate_lr: float,
        noise: int,
    ) -> None:
        self.learner, self.sampler, self.seconds, self.lr = learner, sampler, seconds, lr
        self.settings = {"seconds": seconds, "lr": lr, "outer": outer, "rate_lr": rate_lr, "noise": noise}
        self.settings |= {"tasks": sampler.tasks, "seed": sampler.seed}
        self.optimiser = optimiser(learner, outer, lr, rate_lr)
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.step, self.spent, self.diverged = 0, 0.0, False
        torch.manual_seed(noise)

    def run(self, path: Path, *, every: float = EVERY) -> None:
        """Until the time is spent, or the loss is no number any more; `path`: the checkpoint, gone on from where it is there."""
        if path.exists():
            self.load(path, persist.load(path))
        self.learner.train()
        begun, saved = time.process_time() - self.spent, self.spent
        while self.spent < self.seconds and not self.diverged:
            for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
                group["lr"] = rate * (1 + math.cos(math.pi * self.spent / self.seconds)) / 2
            loss = meta_step(self.learner, self.optimiser, next(self.sampler))
            self.step, self.diverged = self.step + 1, not math.isfinite(loss.item())
            self.spent = time.process_time() - begun
            if self.spent - saved >= every or self.spent >= self.seconds or self.diverged:
                persist.save(path, self.state_dict())
                begun, saved = time.process_time() - self.spent, self.spent  # writing is no training

    def state_dict(self) -> dict[str, Any]:
        return {
            "settings": self.settings, "step": self.step, "spent": self.spent, "diverged": self.diverged, "noise": ranks.noise(),
            "learner": self.learner.state_dict(), "optimiser": self.optimiser.state_dict()["state"],
            "sampler": self.sampler.state_dict(),
        }  # fmt: skip

    def load(self, path: Path, state: Any) -> None:
        """ValueError, which names the file, for what this training could not have come to."""
        checkpoint.keys(path, "a training", state, self.state_dict())
        checkpoint.keys(path, "settings", state["settings"], self.settings)
        for name, value in self.settings.items():
            checkpoint.equal(path, f"settings.{name}", value, state["settings"][name])
        checkpoint.number(path, "step", state["step"], 1, 2**62)
        if not (type(state["spent"]) is float and math.isfinite(state["spent"]) and type(state["diverged"]) is bool):
            checkpoint.refuse(
                path, "spent and diverged, a number and a bool", f"{state['spent']!r}, {state['diverged']!r}"[:60]
            )
        checkpoint.noise(path, [state["noise"]])
        place = {"seed": self.sampler.seed, "next": state["step"] * self.sampler.tasks}
        checkpoint.keys(path, "sampler", state["sampler"], place)
        for name, value in place.items():
            checkpoint.equal(path, f"sampler.{name}", value, state["sampler"][name])
        if not state["diverged"]:  # else it has no numbers
            checkpoint.fits(path, "learner", self.learner.state_dict(), state["learner"])
            groups = self.optimiser.state_dict()["param_groups"]
            if self.settings["outer"] == "adam":
                checkpoint.optimiser(
                    path, self.learner, state["step"], {"state": state["optimiser"], "param_groups": groups}
                )
            self.optimiser.load_state_dict({"state": state["optimiser"], "param_groups": groups})
            self.learner.load_state_dict(state["learner"])
        self.step, self.spent, self.diverged = state["step"], state["spent"], state["diverged"]
        self.sampler.load_state_dict(state["sampler"])
        ranks.set_noise(state["noise"])


def optimiser(learner: Learner, outer: str, lr: float, rate_lr: float) -> torch.optim.Optimizer:
    """The parameters stay in their order: a Meta-SGD has its rates, alpha.0, alpha.1, ..., after its model's."""
    named = list(learner.named_parameters())
    rates, others = ([p for name, p in named if name.startswith("alpha.") == of_rates] for of_rates in (True, False))
    groups = [{"params": others}, *([{"params": rates, "lr": lr * rate_lr}] if rates else [])]
    return (
        torch.optim.SGD(groups, lr)
        if outer == "sgd"
        else fastmeta.optim.Adam(groups if rate_lr != 1 else others + rates, lr)
    )

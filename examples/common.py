"""What the examples share: arguments, networks, the training loop, the race of two backends, estimates and tables."""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import in_jax
import torch
from torch import Tensor, nn
from tqdm import tqdm, trange

import fastmeta
from fastmeta.data import Episodes

Learner = nn.Module  # learner(support_x, support_y, query_x, query_y) -> losses [T]
Sample = Callable[[], Episodes]  # the next batch of tasks


class Estimate(fastmeta.Estimate):
    """Of a training that may diverge."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return super().__format__(spec) if math.isfinite(self.mean) else "diverges"


class Timing(NamedTuple):
    """Seconds that one meta-iteration takes (median): on the chosen backend, and on the reference, plain PyTorch."""

    fastmeta: float
    reference: float
    jax: float | None = None  # where it raced

    @property
    def speedup(self) -> float:
        return self.reference / self.fastmeta

    def columns(self) -> list[str]:
        found = [f"{1e3 * self.fastmeta:.2f} ms", f"{1e3 * self.reference:.2f} ms", f"{self.speedup:.1f}x"]
        return found if self.jax is None else [*found, f"{1e3 * self.jax:.2f} ms", f"{self.jax / self.fastmeta:.1f}x"]


TIMING_HEADER = ["fastmeta", "reference", "speed-up"]
JAX_HEADER = ["JAX", "speed-up over JAX"]


def count(text: str) -> int:
    """An argument that is a whole number, 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def seed(text: str) -> int:
    """An argument that seeds torch's generators, and its neighbours for other ranks and tasks too."""
    value = int(text)
    if abs(value) >= 2**62:
        raise argparse.ArgumentTypeError(f"must be between -2**62 and 2**62, got {text}")
    return value


def arguments(description: str | None, steps: int | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    note = "" if steps else "; None: as many as each needs"
    parser.add_argument("--steps", type=count, default=steps, help=f"meta-iterations of a training{note}")
    parser.add_argument("--seed", type=seed, default=0, help="of the weights and of the training tasks")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--backend",
        choices=("auto", "triton", "ext", "reference"),
        default=os.environ.get("FASTMETA_BACKEND", "auto"),
        help="what runs fastmeta's ops",
    )
    return parser


def run(parser: argparse.ArgumentParser, main: Callable[[argparse.Namespace], None]) -> None:
    """Run `main` on the chosen device and backend; what the user has to put right is one line and exit code 2."""
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    try:
        with fastmeta.backend(args.backend):
            _probe(args.device)
            main(args)
    except (ImportError, OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {' '.join(str(error).split())}\n")


def _probe(device: str) -> None:
    """ValueError unless the device is there and the backend runs on it."""
    try:
        fastmeta.prototypes(torch.zeros(1, 1, device=device), torch.zeros(1, dtype=torch.int64, device=device), 1)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(str(error)) from error


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers of these widths, ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv4(hidden: int, channels: int = 1, *, track_running_stats: bool = True) -> nn.Sequential:
    """Four blocks of convolution, batch norm, ReLU and pooling: [n, channels, 28, 28] -> [n, hidden].

    Source: Vinyals et al. 2016, arXiv:1606.04080; with hidden = 64 the encoder of MAML's and ProtoNet's papers.
    """
    blocks: list[nn.Module] = []
    for inputs in (channels, hidden, hidden, hidden):
        norm = nn.BatchNorm2d(hidden, track_running_stats=track_running_stats)
        blocks += [nn.Conv2d(inputs, hidden, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten())


def adam(learner: Learner, lr: float) -> torch.optim.Adam:
    return fastmeta.optim.Adam(learner.parameters(), lr)


def meta_step(learner: Learner, optimiser: torch.optim.Optimizer, tasks: Episodes) -> Tensor:
    """One meta-iteration; the mean query loss of the tasks before it."""
    optimiser.zero_grad()
    if hasattr(learner, "backward"):
        loss = learner.backward(*tasks).mean()
    else:  # in DistributedDataParallel, which averages gradients in a backward of its own
        loss = learner(*tasks).mean()
        loss.backward()
    optimiser.step()
    return loss.detach()


def train(learner: Learner, sample: Sample, *, steps: int, lr: float, label: str) -> list[float]:
    """The loss of each of `steps` meta-iterations."""
    learner.train()
    optimiser = adam(learner, lr)
    losses = []
    bar = trange(steps, desc=f"{label}: training", mininterval=0.5)
    for step in bar:
        losses.append(meta_step(learner, optimiser, sample()))
        if step % 100 == 0:
            bar.set_postfix_str(f"loss {losses[-1]:.3f}", refresh=False)
    return torch.stack(losses).tolist()


def race(learner: Learner, sample: Sample, *, rounds: int, label: str, jax: bool = False) -> Timing:
    """Time meta-iterations on the chosen backend and on the reference in turn, and in JAX, from equal weights on equal tasks.

    RuntimeError where they disagree on the first meta-gradient. `learner` stays as it is.
    """
    in_its = in_jax.MetaIterations(learner) if jax else None
    fast, plain = copy.deepcopy(learner), copy.deepcopy(learner)
    fast_optimiser, plain_optimiser = adam(fast, 1e-3), adam(plain, 1e-3)
    times: list[tuple[float, ...]] = []
    for turn in tqdm(range(rounds + 1), desc=f"{label}: timing"):
        tasks = sample()
        fast_time = _seconds(fast, fast_optimiser, tasks)
        with fastmeta.backend("reference"):
            plain_time = _seconds(plain, plain_optimiser, tasks)
        of_jax = [in_its.seconds(tasks)] if in_its else []
        if turn == 0:  # a warm-up
            _check_gradients(fast, plain)
            if in_its:
                _check_gradients(fast, in_its.first_gradients(tasks))
        else:
            times.append((fast_time, plain_time, *of_jax))
    return Timing(*map(median, zip(*times, strict=True)))


def _seconds(learner: Learner, optimiser: torch.optim.Optimizer, tasks: Episodes) -> float:
    start = time.perf_counter()
    meta_step(learner, optimiser, tasks).item()  # waits for the device
    return time.perf_counter() - start


def _check_gradients(fast: Learner, others: Learner | Sequence[Tensor]) -> None:
    ours, theirs = (
        torch.cat([g.flatten() for g in (gradients_of(x) if isinstance(x, nn.Module) else x)]) for x in (fast, others)
    )
    error = ((ours - theirs).norm() / theirs.norm()).item()
    if not error < 1e-3:
        raise RuntimeError(
            f"the meta-gradients of fastmeta and of the reference must agree, got a difference of {error:.1e}"
        )


def gradients_of(learner: Learner) -> list[Tensor]:
    return [p.grad for p in learner.parameters() if p.grad is not None]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

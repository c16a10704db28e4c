"""A small training loop and an evaluation. A loop of one's own is as short: `learner.backward(*batch)`, then the optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from . import _check
from .data.task_sampler import meta_batches
from .learners._learner import Learner
from .loops.optimisers import InnerOptimiser
from .meta_iteration import check_learner, iteration_of
from .optim import Adam

LEARNING_RATE = 1e-3  # of Adam, where no optimiser is given: MAML's and ProtoNet's papers' own
MOST = 2**40

Callback = Callable[[int, Tensor], object]


class Estimate(NamedTuple):
    """The mean over episodes, and half the width of its 95 % confidence interval."""

    mean: float
    interval: float

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """Of one value for each episode."""
        return cls(values.mean().item(), 1.96 * values.std().item() / math.sqrt(len(values)))

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} ± {self.interval:{spec}}"


def fit(
    learner: nn.Module,
    sampler: Iterable[Sequence[Tensor]],
    steps: int,
    *,
    optimiser: torch.optim.Optimizer | None = None,
    callbacks: Sequence[Callback] = (),
    graph: bool = False,
) -> Tensor:
    """Trains `learner`: in each of `steps` meta-iterations the gradient of the mean query loss of a meta-batch, and a step.

    `learner`: a learner, or a module around one that gives its losses, such as DistributedDataParallel.
    `sampler`: meta-batches (support_x, support_y, query_x, query_y), as a `fastmeta.data.TaskSampler` gives them, which then
    draws many small ones at once; its `state_dict()` is in a callback that after this step's.
    `optimiser`: None: `fastmeta.optim.Adam`, rate 1e-3, on all parameters that are trained.
    `callbacks`: each is called as callback(step, losses) after every step, counted from 1, losses `[T]`; one that returns true
    ends the training.
    `graph`: on CUDA the steps of `fastmeta.graphed`, from the fourth on one CUDA graph each; elsewhere nothing changes.
    Returns the mean loss of each step taken, `[steps]`, on the learner's device.

    It is a plain loop: for what it does not do, write yours around `learner.backward`. Errors: as the learner, with `graph` as
    `fastmeta.graphed`; ValueError for steps below 1 and for a sampler that ends early.

    ```python
    import torch
    import fastmeta
    from fastmeta.data import Sinusoid, TaskSampler

    net = torch.nn.Sequential(
        torch.nn.Linear(1, 40), torch.nn.ReLU(), torch.nn.Linear(40, 1)
    )
    learner = fastmeta.MAML(net, lr=0.01, steps=1, loss="mse")
    draw = lambda count, generator: Sinusoid().sample(
        count, 10, 10, generator=generator
    )
    losses = fastmeta.fit(learner, TaskSampler(draw, tasks=25), steps=20)
    ```
    """
    op = "fit"
    check_learner(op, learner)
    steps = _check.integer(op, "steps", steps, 1, MOST)
    if isinstance(optimiser, InnerOptimiser):
        raise TypeError(
            f"{op}: optimiser must be one of torch.optim, got fastmeta.{type(optimiser).__name__}, of inner loops"
        )
    optimiser = optimiser or _adam(learner)
    iteration = iteration_of(op, learner, optimiser, _check.flag(op, "graph", graph))
    found: list[Tensor] = []
    for step, batch in zip(range(1, steps + 1), meta_batches(sampler), strict=False):
        losses, mean = iteration(batch)
        found.append(mean)
        ends = [callback(step, losses) for callback in callbacks]
        if any(ends):
            return torch.stack(found)
    if len(found) < steps:
        raise ValueError(f"{op}: sampler must give {steps} meta-batches, got {len(found)}")
    return torch.stack(found)


@torch.no_grad()
def evaluate(learner: Learner, sampler: Iterable[Sequence[Tensor]], episodes: int) -> Estimate:
    """The accuracy on the queries of so many episodes, a share of 1, or for another loss than cross-entropy the mean query loss, with
    its 95 % confidence interval over the episodes. Meta-batches are drawn from `sampler` until there are enough.

    Accuracy: labels of -100 are left out. Layers run in the mode that they are in (`learner.eval()`). Errors: as the learner;
    ValueError for episodes below 2 and for a sampler that ends early.

    ```python
    import torch
    import fastmeta
    from fastmeta.data import TaskSampler, sample_episodes

    images = torch.randint(0, 256, (20, 8, 1, 14, 14), dtype=torch.uint8)
    draw = lambda count, generator: sample_episodes(
        images, count, 5, 1, 5, generator=generator
    )
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(196, 32))
    found = fastmeta.evaluate(
        fastmeta.ProtoNet(encoder), TaskSampler(draw, tasks=10), episodes=40
    )
    print(f"accuracy {found:.1%}")
    ```
    """
    op = "evaluate"
    if not isinstance(learner, Learner):
        raise TypeError(f"{op}: learner must be a learner of fastmeta, got {type(learner).__name__}")
    episodes = _check.integer(op, "episodes", episodes, 2, MOST)
    classifies = learner._loss == "cross_entropy"
    found: list[Tensor] = []
    count = 0
    for batch in meta_batches(sampler):
        found.append(_accuracies(learner, *batch) if classifies else learner.loss(*batch))
        count += len(found[-1])
        if count >= episodes:
            break
    if count < episodes:
        raise ValueError(f"{op}: sampler must give {episodes} episodes, got {count}")
    return Estimate.of(torch.cat(found)[:episodes].double())


def _accuracies(learner: Learner, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
    counted = query_y != -100
    right = (learner(support_x, support_y, query_x).argmax(-1) == query_y) & counted
    return right.sum(1) / counted.sum(1)


def _adam(learner: nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in learner.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"fit: learner must have parameters that are trained, got {type(learner).__name__} without")
    return Adam(trained, lr=LEARNING_RATE)

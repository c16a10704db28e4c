"""One meta-iteration a call, in one CUDA graph where the learner lies on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from .data.task_sampler import meta_batches
from .meta_iteration import MetaIteration, check_learner, iteration_of


class Step:
    """What `graphed` gives: step() runs the next meta-iteration."""

    loss: Tensor  # the mean over the tasks in the last step
    losses: Tensor  # [T], of the tasks

    def __init__(self, iteration: MetaIteration, batches: Iterator[Sequence[Tensor]]) -> None:
        self._iteration, self._batches, self._taken = iteration, batches, 0

    def __call__(self) -> None:
        batch = next(self._batches, None)
        if batch is None:
            raise ValueError(f"graphed: sampler must give a meta-batch for every step, got {self._taken}")
        self.losses, self.loss = self._iteration(batch)
        self._taken += 1


def graphed(learner: nn.Module, optimiser: torch.optim.Optimizer, sampler: Iterable[Sequence[Tensor]]) -> Step:
    """step() runs one meta-iteration: draws a meta-batch, theta <- optimiser(d/dtheta of its mean query loss). On CUDA as one graph.

    `learner`, `sampler`: as `fastmeta.fit` takes them; meta-batches may lie on a CPU. `optimiser`: torch.optim.SGD,
    `fastmeta.optim.Adam`, or another made with capturable=True.
    `step.losses` `[T]`, `step.loss` their mean: tensors on the learner's device. To have them waits for nothing; to look at their
    values does.

    On CUDA the first 3 steps run as ever, on a stream of their own; under DistributedDataParallel 11. The fourth is captured, with
    static memory for the meta-batch, and from then on a step is the copies of a meta-batch and one launch. What Python does, such as
    hooks, is not done again. So the learner, its model and its settings must stay as they are; an optimiser's option or the learner's
    mode that changes raises. A rate that changes is a tensor on the device, of a fused optimiser. On other devices
    the steps are `fastmeta.fit`'s.

    Errors: as `fastmeta.fit`; TypeError for what is no optimiser; ValueError for an optimiser that cannot be captured, a meta-batch
    of other shapes than the first, and a sampler that ends; RuntimeError where a model asks for a value, draws random numbers
    on the CPU, or on the device inside an inner loop, which draws them twice, and for a process group that cannot be captured.
    Source: torch's notes on CUDA graphs.

    ```python
    import torch
    import fastmeta
    from fastmeta.data import Sinusoid, TaskSampler

    net = torch.nn.Sequential(
        torch.nn.Linear(1, 40), torch.nn.ReLU(), torch.nn.Linear(40, 1)
    )
    learner = fastmeta.MAML(net, lr=0.01, steps=1, loss="mse")
    optimiser = fastmeta.optim.Adam(learner.parameters(), lr=1e-3)
    draw = lambda count, generator: Sinusoid().sample(
        count, 10, 10, generator=generator
    )
    step = fastmeta.graphed(learner, optimiser, TaskSampler(draw, tasks=25))
    for _ in range(20):
        step()
    print(step.loss)
    ```
    """
    op = "graphed"
    check_learner(op, learner)
    if not isinstance(optimiser, torch.optim.Optimizer):
        raise TypeError(f"{op}: optimiser must be one of torch.optim's kind, got {type(optimiser).__name__}")
    return Step(iteration_of(op, learner, optimiser), meta_batches(sampler))

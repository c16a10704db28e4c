"""Episodes: a batch of few-shot tasks, and the sampler that draws all of them in one indexing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _check
from .task_generator import TaskGenerator, place, uniform


class Episodes(NamedTuple):
    """T tasks, each with S support and Q query examples.

    `support_x`, `query_x`: `[T, S, ...]` and `[T, Q, ...]`, floating.
    `support_y`, `query_y`: `[T, S, ...]` and `[T, Q, ...]`, int64 labels or the floating targets of a regression.

    `learner.loss(*episodes)` takes them in this order.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def to(self, device: torch.device | str) -> Episodes:
        """The same tasks on `device`."""
        device = _check.device("Episodes.to", device)
        return Episodes(*(tensor.to(device) for tensor in self))


def sample_episodes(
    images: Tensor,
    tasks: int,
    ways: int,
    shots: int,
    queries: int,
    *,
    generator: torch.Generator | TaskGenerator | None = None,
) -> Episodes:
    """T tasks: N distinct classes, and of each K + Q' distinct examples, K of them support, all subsets equally likely.

    `images`: `[classes, examples, ...]`, uint8 or floating, on any device, where everything is drawn.
    `tasks`, `ways`, `shots`, `queries`: T, N, K, Q'.

    Returns x of `[T, N*K, ...]` and `[T, N*Q', ...]` and int64 y of `[T, N*K]` and `[T, N*Q']`. uint8 becomes float32 in [0, 1]
    (divided by 255) after the draw; floating images keep their dtype. Label n is the n-th class that a task drew. Both sets are
    ordered by label, then by draw: y is 0..0 1..1 .. N-1. Support and query of a task share no example.

    There is no loop over tasks: one gather serves the batch. A generator in the same state on the same kind of device gives
    the same tasks. With a TaskGenerator (see `TaskSampler`) each task has its own random numbers.

    Errors: ValueError for fewer than two dimensions, counts below 1, fewer classes than ways, fewer examples than
    shots + queries, more than 2**40 numbers in a batch, a generator on another device or of other tasks; TypeError for
    other dtypes, sparse images, counts that are no ints.

    Source: Vinyals et al. 2016, arXiv:1606.04080, section 2.2.
    """
    tasks, ways, shots, queries = _checked(images, tasks, ways, shots, queries)
    device = place("sample_episodes", generator, images.device, tasks)
    classes, examples = images.shape[:2]

    def subsets(lead: tuple[int, ...], population: int, size: int) -> Tensor:
        """[*lead, size]: uniform draws without replacement, as the order of uniform keys."""
        keys = uniform(generator, device, *lead, population)
        return keys.topk(size, dim=-1).indices

    drawn_classes = subsets((tasks,), classes, ways)  # [T, N]
    drawn_examples = subsets((tasks, ways), examples, shots + queries)  # [T, N, K + Q']
    flat = drawn_classes[:, :, None] * examples + drawn_examples
    rows = torch.cat([flat[:, :, :shots].flatten(), flat[:, :, shots:].flatten()])
    x = images[rows // examples, rows % examples]  # [T*N*K + T*N*Q', ...]: both halves contiguous
    if x.dtype == torch.uint8:
        x = x.to(torch.float32).div_(255)
    support_x, query_x = x.split([tasks * ways * shots, tasks * ways * queries])
    labels = torch.arange(ways, device=device)
    return Episodes(
        support_x.unflatten(0, (tasks, ways * shots)),
        labels.repeat_interleave(shots).repeat(tasks, 1),
        query_x.unflatten(0, (tasks, ways * queries)),
        labels.repeat_interleave(queries).repeat(tasks, 1),
    )


def _checked(images: Tensor, *counts: int) -> list[int]:
    """T, N, K and Q' as ints."""
    op = "sample_episodes"
    if not isinstance(images, Tensor):
        raise TypeError(f"{op}: images must be a tensor, got {type(images).__name__}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"{op}: images must be uint8 or floating, got {images.dtype}")
    if images.layout != torch.strided:
        raise TypeError(f"{op}: images must be dense, got {images.layout}")
    if images.ndim < 2:
        raise ValueError(f"{op}: images must be [classes, examples, ...], got shape {list(images.shape)}")
    named = dict(zip(("tasks", "ways", "shots", "queries"), counts, strict=True))
    tasks, ways, shots, queries = _check.positive(op, **named)
    classes, examples = images.shape[:2]
    if classes < ways:
        raise ValueError(f"{op}: images must have at least ways={ways} classes, got {classes}")
    if examples < shots + queries:
        raise ValueError(
            f"{op}: images must have at least shots + queries = {shots + queries} examples a class, got {examples}"
        )
    drawn = ways * max(examples, (shots + queries) * images[0, 0].numel())
    _check.room(op, "tasks", tasks * max(classes, drawn))
    return [tasks, ways, shots, queries]

"""Episodes: a batch of few-shot tasks, and the sampler that draws all of them in one indexing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

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
    counts: Sequence[int] | None = None,
    generator: torch.Generator | TaskGenerator | None = None,
) -> Episodes:
    """T tasks: N distinct classes, and of each K + Q' distinct examples, K of them support, all subsets equally likely.

    `images`: `[classes, examples, ...]`, uint8 or floating, on any device, where everything is drawn.
    `tasks`, `ways`, `shots`, `queries`: T, N, K, Q'.
    `counts`: how many examples each class has, where that differs: images are then `[examples of all, ...]`, class after class.

    Returns x of `[T, N*K, ...]` and `[T, N*Q', ...]` and int64 y of `[T, N*K]` and `[T, N*Q']`. uint8 becomes float32 in [0, 1]
    (divided by 255) after the draw; floating images keep their dtype. Label n is the n-th class that a task drew. Both sets are
    ordered by label, then by draw: y is 0..0 1..1 .. N-1. Support and query of a task share no example.

    There is no loop over tasks: one gather serves the batch. A generator in the same state on the same kind of device gives
    the same tasks. With a TaskGenerator (see `TaskSampler`) each task has its own random numbers.

    Errors: ValueError for fewer than two dimensions, counts below 1, fewer classes than ways, fewer examples than
    shots + queries, `counts` of another sum than there are images, more than 2**40 numbers in a batch, a generator on another
    device or of other tasks; TypeError for other dtypes, sparse images, counts that are no ints.

    Source: Vinyals et al. 2016, arXiv:1606.04080, section 2.2.
    """
    tasks, ways, shots, queries, classes, examples = _checked(images, counts, tasks, ways, shots, queries)
    device = place("sample_episodes", generator, images.device, tasks)
    # Draws without replacement are uniform, as the order of uniform keys is.
    drawn_classes = uniform(generator, device, tasks, classes).topk(ways).indices  # [T, N]
    keys = uniform(generator, device, tasks, ways, examples)
    if counts is not None:
        of_class = torch.tensor(counts, device=device)
        keys.masked_fill_(torch.arange(examples, device=device) >= of_class[drawn_classes][..., None], -1)
    drawn_examples = keys.topk(shots + queries).indices  # [T, N, K + Q']

    def rows(first: Tensor) -> Tensor:
        """[T*N*K + T*N*Q'], of each class's first row; so that both halves are contiguous."""
        every = first[:, :, None] + drawn_examples
        return torch.cat([every[:, :, :shots].flatten(), every[:, :, shots:].flatten()])

    if counts is not None:
        x = images.index_select(0, rows((of_class.cumsum(0) - of_class)[drawn_classes]))
    else:
        flat = rows(drawn_classes * examples)
        if images.stride(0) == examples * images.stride(1):  # whole rows are copied, in a tenth of the time
            x = images.flatten(0, 1).index_select(0, flat)
        else:
            x = images[flat // examples, flat % examples]
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


def _checked(images: Tensor, counts: Sequence[int] | None, *numbers: int) -> list[int]:
    """T, N, K and Q' as ints; how many classes there are, and how many examples the largest has."""
    op = "sample_episodes"
    if not isinstance(images, Tensor):
        raise TypeError(f"{op}: images must be a tensor, got {type(images).__name__}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"{op}: images must be uint8 or floating, got {images.dtype}")
    if images.layout != torch.strided:
        raise TypeError(f"{op}: images must be dense, got {images.layout}")
    lead = "classes, examples" if counts is None else "examples of all classes"
    if images.ndim < (2 if counts is None else 1):
        raise ValueError(f"{op}: images must be [{lead}, ...], got shape {list(images.shape)}")
    named = dict(zip(("tasks", "ways", "shots", "queries"), numbers, strict=True))
    tasks, ways, shots, queries = _check.positive(op, **named)
    if counts is None:
        classes, examples = images.shape[:2]
    else:
        classes, examples = _of_each(op, counts, len(images), shots + queries)
    if classes < ways:
        raise ValueError(f"{op}: images must have at least ways={ways} classes, got {classes}")
    if examples < shots + queries:
        raise ValueError(
            f"{op}: images must have at least shots + queries = {shots + queries} examples a class, got {examples}"
        )
    each = math.prod(images.shape[2 if counts is None else 1 :])
    _check.room(op, "tasks", tasks * max(classes, ways * max(examples, (shots + queries) * each)))
    return [tasks, ways, shots, queries, classes, examples]


def _of_each(op: str, counts: Any, images: int, least: int) -> tuple[int, int]:
    """How many classes, and the most examples of one; every one must have enough."""
    if isinstance(counts, str | Tensor) or not isinstance(counts, Sequence):
        raise TypeError(f"{op}: counts must be a sequence of ints, got {type(counts).__name__}")
    found = [_check.whole(op, "counts", count, 1, _check.MOST) for count in counts]
    if sum(found) != images:
        raise ValueError(f"{op}: counts must add up to the {images} images, got {sum(found)}")
    fewest = min(found, default=least)
    if fewest < least:
        raise ValueError(
            f"{op}: counts must be at least shots + queries = {least}, got {fewest} of class {found.index(fewest)}"
        )
    return len(found), max(found, default=least)

"""Tasks of different numbers of ways, shots and queries, their rows one after the other: no rows are kept for what a task lacks.

The rows of task t are those after the tasks before it: `support_sizes`, `query_sizes` and `ways` say how many support examples, queries
and classes each task has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _check
from ._ask import ask
from ._groups import Group, Spread, gathered, groups_of, in_order, repeated, starts_of
from .distance.proto_log_softmax import proto_log_softmax as of_equal
from .distance.proto_loss import REDUCTIONS
from .distance.proto_loss import proto_loss as loss_of_equal
from .distance.prototypes import prototypes as means_of
from .types import Metric, Reduction

__all__ = ["proto_log_softmax", "proto_loss", "prototypes"]

Sizes = Sequence[int] | Tensor


def prototypes(support: Tensor, labels: Tensor, support_sizes: Sizes, ways: Sizes) -> Tensor:
    r"""c_tk = mean of the support examples of class k of task t.

    Shapes: support `[S_1 + ... + S_T, D]`, labels `[S_1 + ... + S_T]` int64, those of task t in `[0, N_t)` -> `[N_1 + ... + N_T, D]`.

    Differentiable in `support`, to any order. One call of `fastmeta.prototypes`, all classes as those of one task.

    Errors: as there, in the name "ragged.prototypes"; ValueError for sizes that do not add up to the rows. On CUDA labels are not
    looked at: there one that is out of range makes all prototypes NaN, and a class without an example has the prototype NaN.
    """
    op = "ragged.prototypes"
    _check.floating(op, support=support)
    sizes, of_ways = _sizes(op, "support_sizes", support_sizes, "support", support), _ways(op, ways)
    _same_tasks(op, sizes, of_ways, "support_sizes")
    _check.labels(op, "labels", labels, support.shape[:1], support.device)
    most, first = (repeated(x, sizes).to(labels.device) for x in (of_ways, starts_of(of_ways)))
    is_right = (labels >= 0) & (labels < most)
    places = torch.where(is_right, labels + first, -1)
    if _check.visible(labels):
        if not bool(is_right.all()):
            wrong = (~is_right).nonzero()[0, 0]
            raise ValueError(f"{op}: labels must be in [0, {most[wrong]}), got {labels[wrong]} in row {wrong}")
        _every_class(op, places, of_ways)
    if not of_ways:
        return support[:0]
    return ask(op, means_of, {}, support, places, sum(of_ways))


def proto_log_softmax(
    query: Tensor,
    prototypes: Tensor,
    query_sizes: Sizes,
    ways: Sizes,
    *,
    metric: Metric = "euclidean",
    temperature: float | Tensor = 1.0,
) -> list[Tensor]:
    r"""log p(y = k | x) = log_softmax_k(-d(x, c_tk) / temperature), for the queries of each task t.

    Shapes: query `[Q_1 + ... + Q_T, D]`, prototypes `[N_1 + ... + N_T, D]` -> T tensors `[Q_t, N_t]`.

    Differentiable in query, prototypes and temperature, to any order. Metrics, dtypes, kernels and cost: as in `ragged.proto_loss`.

    Errors: as in `fastmeta.proto_log_softmax`, in the name "ragged.proto_log_softmax"; ValueError for sizes that do not add up to the rows.
    """
    op = "ragged.proto_log_softmax"
    sizes, of_ways = _both(op, query, prototypes, query_sizes, ways)
    if not sizes:
        return []
    groups, _, (xs, cs) = _spread(query, prototypes, sizes, of_ways)
    options: dict[str, Any] = {"metric": metric, "temperature": temperature}
    parts = [ask(op, of_equal, {}, x, c, **options) for x, c in zip(xs, cs, strict=True)]
    return gathered(parts, sizes, groups)


def proto_loss(
    query: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    query_sizes: Sizes,
    ways: Sizes,
    *,
    metric: Metric = "euclidean",
    temperature: float | Tensor = 1.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""loss_t = -mean_q log p(y_q | x_q) over the queries of task t, p as in `ragged.proto_log_softmax`, without the `[Q_t, N_t]` matrices.

    Shapes: query `[Q_1 + ... + Q_T, D]`, prototypes `[N_1 + ... + N_T, D]`, targets `[Q_1 + ... + Q_T]` int64 -> `[T]`, or
    `[Q_1 + ... + Q_T]` for reduction "none". A task without a target that counts gets 0.

    Differentiable in query, prototypes and temperature, to any order. Equal to a loop of `fastmeta.proto_loss` over the tasks, but for
    rounding. Metrics, temperature, reductions and dtypes are its.

    Cost: one call of `fastmeta.proto_loss` for all tasks of as many ways and about as many queries, which are copied and filled up to
    the most of them by rows that do not count: by a third at most, or by what costs less than another call. A task with more than
    65536 numbers in its queries has a call of its own and is not copied. Where all ways differ, that is a loop over the tasks.

    Errors: as in `fastmeta.proto_loss`, in the name "ragged.proto_loss"; ValueError for sizes that do not add up to the rows.

    ```python
    import torch
    import fastmeta

    shots, queries, ways = [10, 7, 12], [20, 31, 4], [5, 3, 5]
    support = torch.randn(sum(shots), 64, requires_grad=True)
    labels = torch.cat(
        [torch.arange(s) % n for s, n in zip(shots, ways, strict=True)]
    )
    targets = torch.cat(
        [torch.arange(q) % n for q, n in zip(queries, ways, strict=True)]
    )
    centres = fastmeta.ragged.prototypes(support, labels, shots, ways)
    query = torch.randn(sum(queries), 64)
    losses = fastmeta.ragged.proto_loss(query, centres, targets, queries, ways)
    losses.mean().backward()
    ```
    """
    op = "ragged.proto_loss"
    sizes, of_ways = _both(op, query, prototypes, query_sizes, ways)
    _check.labels(op, "targets", targets, query.shape[:1], query.device)
    ignore_index = _check.integer(op, "ignore_index", ignore_index, -(2**63), 2**63 - 1)
    reduction = _check.one_of(op, "reduction", reduction, REDUCTIONS)
    if not sizes:
        return query.sum(-1)  # no task: no rows
    groups, of_queries, (xs, cs) = _spread(query, prototypes, sizes, of_ways)
    ys = of_queries(targets, ignore_index)
    options = {"metric": metric, "temperature": temperature, "ignore_index": ignore_index, "reduction": reduction}
    parts = [ask(op, loss_of_equal, {}, *rows, **options) for rows in zip(xs, cs, ys, strict=True)]
    return torch.cat(gathered(parts, sizes, groups)) if reduction == "none" else in_order(parts, groups)


def _spread(
    query: Tensor, prototypes: Tensor, sizes: list[int], ways: list[int]
) -> tuple[list[Group], Spread, tuple[list[Tensor], list[Tensor]]]:
    groups = groups_of(sizes, ways, query.shape[1])
    of_queries = Spread(groups, sizes, [group.most for group in groups])
    of_prototypes = Spread(groups, ways, [group.ways for group in groups])
    return groups, of_queries, (of_queries(query), of_prototypes(prototypes))


def _both(op: str, query: Any, centres: Any, query_sizes: Sizes, ways: Sizes) -> tuple[list[int], list[int]]:
    """The sizes, as lists of ints."""
    _check.floating(op, query=query, prototypes=centres)
    sizes = _sizes(op, "query_sizes", query_sizes, "query", query)
    of_ways = _sizes(op, "ways", _ways(op, ways), "prototypes", centres)
    _same_tasks(op, sizes, of_ways, "query_sizes")
    return sizes, of_ways


def _sizes(op: str, name: str, sizes: Any, of: str, rows: Tensor) -> list[int]:
    """ValueError unless they add up to the rows [n, D]."""
    if rows.ndim != 2:
        raise ValueError(f"{op}: {of} must have 2 dimensions, got shape {_check.shape(rows)}")
    found = _whole(op, name, sizes, 0)
    if sum(found) != rows.shape[0]:
        raise ValueError(f"{op}: {name} must add up to the {rows.shape[0]} rows of {of}, got {sum(found)}")
    return found


def _ways(op: str, ways: Any) -> list[int]:
    return _whole(op, "ways", ways, 1)


def _whole(op: str, name: str, sizes: Any, least: int) -> list[int]:
    items = sizes.tolist() if isinstance(sizes, Tensor) and sizes.ndim == 1 else sizes
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise TypeError(f"{op}: {name} must be a sequence of integers, got {type(sizes).__name__}")
    return [_check.integer(op, name, item, least, _check.MOST_CLASSES) for item in items]


def _same_tasks(op: str, sizes: list[int], ways: list[int], name: str) -> None:
    if len(sizes) != len(ways):
        raise ValueError(f"{op}: ways must have one number for each of the {len(sizes)} {name}, got {len(ways)}")


def _every_class(op: str, places: Tensor, ways: list[int]) -> None:
    """ValueError where a class has no example; `places`: the classes of all tasks, numbered on."""
    empty = (torch.bincount(places, minlength=sum(ways)) == 0).nonzero()
    if len(empty):
        starts, first = starts_of(ways), int(empty[0])
        task = max(t for t, start in enumerate(starts) if start <= first)
        raise ValueError(
            f"{op}: every class must have a support example, got none of class {first - starts[task]} in task {task}"
        )

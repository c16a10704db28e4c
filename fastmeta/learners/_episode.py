"""What all learners check of a batch of tasks, and what they do without any."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .. import _check
from .._autograd import is_autocast
from ..reference.mlp_loss import IGNORE_INDEX, negative_log_likelihood, per_counted


def check_episode(
    name: str, loss: object, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor | None = None
) -> None:
    """TypeError or ValueError unless the tensors have one number of tasks, one device, inputs and targets one number of examples,
    and targets the kind that `loss` takes: "cross_entropy" int64 `[T, n]`, "mse" floating ones, any other what it likes."""
    if _is_right(loss, support_x, support_y, query_x, query_y):
        return
    given = {"support_x": support_x, "support_y": support_y, "query_x": query_x}
    if query_y is not None:
        given["query_y"] = query_y
    for label, x in given.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: {label} must be a tensor, got {type(x).__name__}")
    shape, device = support_x.shape, support_x.device
    for label, x in given.items():
        least = 3 if label.endswith("x") else 2
        if x.ndim < least:
            raise ValueError(f"{name}: {label} must have at least {least} dimensions, got shape {list(x.shape)}")
        if x.shape[0] != shape[0]:
            raise ValueError(
                f"{name}: {label} must have the {shape[0]} tasks of support_x in front, got shape {list(x.shape)}"
            )
        if x.device != device:
            raise ValueError(f"{name}: {label} must be on the device of support_x, {device}, got {x.device}")
    if query_x.dtype != support_x.dtype and not is_autocast(device.type):
        raise TypeError(f"{name}: query_x must have the dtype of support_x, {support_x.dtype}, got {query_x.dtype}")
    _check_targets(name, loss, "support_y", support_y, shape)
    if query_y is not None:
        _check_targets(name, loss, "query_y", query_y, query_x.shape)


def check_tasks(name: str, *of_tasks: Sequence[Tensor]) -> None:
    """`check_episode` of each of a list of tasks: lists of support_x, support_y, query_x and perhaps query_y."""
    labels = ("support_x", "support_y", "query_x", "query_y")
    for label, found in zip(labels, of_tasks, strict=False):
        if not isinstance(found, list | tuple):
            raise TypeError(f"{name}: {label} must be a list with a tensor for each task, got {type(found).__name__}")
        if len(found) != len(of_tasks[0]) or not found:
            raise ValueError(f"{name}: {label} must hold one task or more, as many as support_x, got {len(found)}")
        for x in found:
            if not isinstance(x, Tensor):
                raise TypeError(f"{name}: {label} must hold tensors, got {type(x).__name__}")
    first = of_tasks[0][0]
    for task in zip(*of_tasks, strict=True):
        check_episode(name, "cross_entropy", *(x.unsqueeze(0) for x in task))
        for label, x in zip(labels[::2], task[::2], strict=True):
            if (x.shape[1:], x.dtype, x.device) != (first.shape[1:], first.dtype, first.device):
                raise ValueError(
                    f"{name}: {label} must have examples of one shape, dtype and device in all tasks, "
                    f"{list(first.shape[1:])} {first.dtype} {first.device}, got {list(x.shape[1:])} {x.dtype} {x.device}"
                )


def _is_right(loss: object, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor | None) -> bool:
    """The usual case of `check_episode`, on a CPU: quick, for small problems take microseconds."""
    try:
        of_support, of_query = support_x.shape, query_x.shape
        return (
            support_x.is_cpu and query_x.is_cpu and support_y.is_cpu
            and len(of_support) > 2 and len(of_query) > 2
            and of_support[0] == of_query[0]
            and support_x.dtype is query_x.dtype
            and _are_right(loss, support_y, of_support)
            and (query_y is None or (query_y.is_cpu and _are_right(loss, query_y, of_query)))
        )  # fmt: skip
    except AttributeError:
        return False


def _are_right(loss: object, y: Tensor, of_inputs: torch.Size) -> bool:
    if loss == "cross_entropy":
        return y.dtype is torch.int64 and y.shape == of_inputs[:2]
    return y.shape[:2] == of_inputs[:2] and (loss != "mse" or y.is_floating_point())


def _check_targets(name: str, loss: object, label: str, y: Tensor, of_inputs: Sequence[int]) -> None:
    if y.shape[:2] != of_inputs[:2]:
        raise ValueError(f"{name}: {label} must have shape {list(of_inputs[:2])} in front, got {list(y.shape)}")
    if loss == "cross_entropy":
        if y.dtype != torch.int64:
            raise TypeError(f"{name}: {label} must be int64 class indices, got {y.dtype}")
        if y.ndim != 2:
            raise ValueError(f"{name}: {label} must have shape {list(of_inputs[:2])}, got {list(y.shape)}")
    elif loss == "mse" and not y.is_floating_point():
        raise TypeError(f"{name}: {label} must be floating numbers, got {y.dtype}")


def losses_of(name: str, log_probs: Tensor, query_y: Tensor) -> Tensor:
    """[T, Q, N] -> the mean negative log-likelihood of each task's labels that are not -100, [T]; 0 where there are none."""
    _check.label_range(name, "query_y", query_y, log_probs.shape[-1], IGNORE_INDEX)
    losses = negative_log_likelihood(log_probs, query_y, IGNORE_INDEX)
    return per_counted(losses.sum(-1), query_y, IGNORE_INDEX)


def ways_of(name: str, num_classes: int | None, support_y: Tensor) -> int:
    """`num_classes`, or what the labels of this batch show."""
    if num_classes is not None:
        return num_classes
    if not support_y.numel():
        raise ValueError(f"{name}: support_y must hold at least one example, got shape {list(support_y.shape)}")
    if support_y.is_cuda:
        _warn_that_it_waits(name)
    if support_y.is_meta:
        raise ValueError(f"{name}: num_classes must be given where labels have no values, got None on the meta device")
    last = int(support_y.max())
    if last >= _check.MOST_CLASSES:
        raise ValueError(f"{name}: support_y must be below {_check.MOST_CLASSES}, got {last}")
    return last + 1


def known_ways(name: str, num_classes: int | None) -> list[int]:
    """[N], or ValueError where there is no label to read it from."""
    if num_classes is None:
        raise ValueError(f"{name}: num_classes must be given where there is no task, got None")
    return [num_classes]


@functools.cache
def _warn_that_it_waits(name: str) -> None:
    warnings.warn(
        f"{name}: without num_classes every call waits for the device, to read the number of ways from the labels; pass it",
        stacklevel=2,
    )


def of_no_tasks(shape: Sequence[int], tensors: Iterable[Tensor]) -> Tensor:
    """What a learner gives for no tasks: no elements, in the first tensor's dtype, whose gradient to all tensors is 0."""
    floating = [x for x in tensors if x.is_floating_point()]
    like = floating[0]
    return torch.cat([x.reshape(-1)[:0].to(like) for x in floating]).reshape(tuple(shape))

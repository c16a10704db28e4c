"""The checks that all learners make of a batch of tasks."""

from __future__ import annotations

from torch import Tensor


def check_episode(
    name: str, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor | None = None
) -> None:
    """ValueError unless the tensors have one number of tasks, and inputs and labels one number of examples."""
    for label, x, minimum in (("support_x", support_x, 3), ("support_y", support_y, 2), ("query_x", query_x, 3)):
        if x.ndim < minimum:
            raise ValueError(f"{name}: {label} must have at least {minimum} dimensions, got shape {list(x.shape)}")
        if x.shape[0] != support_x.shape[0]:
            raise ValueError(
                f"{name}: {label} must have the {support_x.shape[0]} tasks of support_x in front, got shape {list(x.shape)}"
            )
    pairs = [("support_y", support_y, support_x)] + ([("query_y", query_y, query_x)] if query_y is not None else [])
    for label, y, x in pairs:
        if y.shape[:2] != x.shape[:2]:
            raise ValueError(f"{name}: {label} must have shape {list(x.shape[:2])} in front, got {list(y.shape)}")

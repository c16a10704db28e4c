"""What the steps of an inner loop are beyond theta - alpha g on one batch: a batch for each, an optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import _check
from ..loops.optimisers import SGD, Adam, AdamEpsHat, InnerOptimiser
from ..reference.mlp_adapt import Inner
from ..types import Rate

OPTIMISERS = (SGD, Adam, AdamEpsHat)  # whose formulas the kernels have


def given_steps(op: str, lr: Rate | None, batch_per_step: Any, optimiser: InnerOptimiser | None) -> tuple[Any, Inner]:
    """The rates, and the static argument of the op: None for theta - alpha g on one batch."""
    batched, numbers = _check.flag(op, "batch_per_step", batch_per_step), None
    if optimiser is not None:
        if type(optimiser) not in OPTIMISERS:
            came = _check.brief(optimiser)
            raise TypeError(f"{op}: optimiser must be None, a fastmeta.SGD or a fastmeta.Adam, got {came}")
        if lr is not None:
            raise ValueError(f"{op}: lr must be None beside optimiser, which has its own, got {_check.brief(lr)}")
        lr, numbers = optimiser.lr, numbers_of(op, optimiser)  # type: ignore[attr-defined]
    return lr, (batched, numbers) if batched or numbers else None


def numbers_of(op: str, optimiser: InnerOptimiser) -> tuple[Any, ...] | None:
    """Of an optimiser but for its rates; None where it is theta - alpha g. TypeError where one is a tensor."""
    for name, value in optimiser.values().items():
        if name != "lr" and not isinstance(value, float):
            came = type(value).__name__
            raise TypeError(f"{op}: optimiser must have a number for {name}, which fastmeta.unroll learns, got {came}")
    own: Any = optimiser
    if isinstance(optimiser, Adam):
        return ("adam_eps_hat" if type(optimiser) is AdamEpsHat else "adam", *own.betas, own.eps, own.weight_decay)
    plain = own.momentum == 0 and own.weight_decay == 0
    return None if plain else ("sgd", own.momentum, own.weight_decay, own.nesterov)


def lead_of(inner: Inner, steps: int) -> list[int]:
    """Of the support: the steps, where each has a batch of its own."""
    return [steps] if inner and inner[0] else []


def tasks_first(x: Any, core: int) -> Any:
    """[K, *tasks, ...] -> [*tasks, K, ...], `core` axes behind the tasks; what is no such tensor as it is."""
    return x.movedim(0, x.ndim - core) if isinstance(x, Tensor) and x.ndim > core else x


def by_tasks(inner: Inner, cores: tuple[Any, ...], x: Any, y: Any, weights: Any) -> tuple[Any, ...]:
    """The `cores` of a call and its support, unchecked, with the steps behind the tasks where each has a batch of its own."""
    if not inner or not inner[0]:
        return cores, x, y, weights
    of_x, (of_y, *of_weights) = cores[2] + 1, cores[3] if isinstance(cores[3], tuple) else (cores[3],)
    of_targets = (of_y + 1, 2) if of_weights else of_y + 1
    support = tasks_first(x, of_x), tasks_first(y, of_y + 1), tasks_first(weights, 2)
    return (*cores[:2], of_x, of_targets, *cores[4:]), *support


def of_a_step(op: str, name: str, x: Any, rank: int, lead: Sequence[int]) -> dict[str, Tensor]:
    """The inputs, by name, that the parameters are checked with: with the steps as `lead` those of one, [*tasks, n, ...]."""
    if not lead:
        return {name: x}
    _check.dense(op, name, x)
    if x.ndim <= rank or x.shape[0] != lead[0]:
        came = _check.shape(x)
        raise ValueError(f"{op}: {name} must have a batch for each of {lead[0]} steps in front, got shape {came}")
    return {f"{name} of a step": x[0] if lead[0] else x.new_empty(x.shape[1:])}

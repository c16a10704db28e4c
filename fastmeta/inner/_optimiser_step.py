"""What the steps of optimisers share: structures of tensors, their checks, and a state that may be wider than the parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _check
from .._dispatch import LOW_PRECISION
from .._route import call, direct, pullback


def over_tree(op: str, step: Callable[..., list[Any]], params: Any, others: dict[str, Any], lr: Any) -> list[Any]:
    """What `step(names, params, *others, rates)` makes of the lists, each in the structure of `params`."""
    if isinstance(params, Tensor):
        return [found[0] for found in step(["params"], [params], *([x] for x in others.values()), [lr])]
    if isinstance(params, Mapping):
        for name, other in others.items():
            _same_keys(op, name, params, other)
        names = list(params)
        rates = lr
        if isinstance(lr, Mapping):
            _same_keys(op, "lr", params, lr)
            rates = [lr[n] for n in names]
        lists = ([x[n] for n in names] for x in (params, *others.values()))
        return [dict(zip(names, found, strict=True)) for found in step(names, *lists, _rates(op, rates, names))]
    if not isinstance(params, list | tuple):
        raise TypeError(f"{op}: params must be a tensor, a sequence or a dict of tensors, got {type(params).__name__}")
    for name, other in others.items():
        if not isinstance(other, list | tuple) or len(other) != len(params):
            came = len(other) if isinstance(other, list | tuple) else type(other).__name__
            raise ValueError(f"{op}: {name} must be a sequence of {len(params)} tensors like params, got {came}")
    names = [f"params[{i}]" for i in range(len(params))]
    stepped = step(names, list(params), *map(list, others.values()), _rates(op, lr, names))
    return [tuple(found) for found in stepped] if isinstance(params, tuple) else stepped


def _same_keys(op: str, name: str, params: Mapping[str, Any], other: Any) -> None:
    if not isinstance(other, Mapping) or (list(other) != list(params) and set(other) != set(params)):
        came = list(other) if isinstance(other, Mapping) else type(other).__name__
        raise ValueError(f"{op}: {name} must be a dict with the keys of params, {list(params)}, got {came}")


def _rates(op: str, lr: Any, names: Sequence[str]) -> list[Any]:
    """One rate for all as a list of length 1, else one for each tensor."""
    if not isinstance(lr, list | tuple):
        if isinstance(lr, Tensor):
            _check.dense(op, "lr", lr)
            if lr.ndim:
                raise ValueError(
                    f"{op}: one lr for all must be a number or a 0-dim tensor, got shape {_check.shape(lr)}"
                )
        return [lr]
    if len(lr) != len(names):
        raise ValueError(f"{op}: lr must have one entry for each of the {len(names)} params, got {len(lr)}")
    return list(lr)


def finite_rates(op: str, rates: Sequence[Any]) -> list[Any]:
    return [r if isinstance(r, Tensor) else _check.rate(op, "lr", r) for r in rates]


def check_tensors(op: str, names: Sequence[str], params: list[Tensor], grads: list[Tensor], rates: list[Any]) -> None:
    for i, (name, p, g) in enumerate(zip(names, params, grads, strict=True)):
        rate = rates[0 if len(rates) == 1 else i]
        _check.floating(op, **{name: p, f"the gradient of {name}": g})
        _check.floating(op, **{names[0]: params[0], name: p})
        if p.shape != g.shape and p.shape != g.shape[1:]:
            raise ValueError(
                f"{op}: the gradient of {name} must have its shape {_check.shape(p)}, with or without a task axis in front, "
                f"got {_check.shape(g)}"
            )
        if isinstance(rate, Tensor):
            _check.floating(op, **{name: p, f"the rate of {name}": rate})
            if rate.ndim and rate.shape not in (g.shape, g.shape[1:]):
                raise ValueError(
                    f"{op}: the rate of {name} must be 0-dim or have the shape {_check.shape(g)} with or without the task "
                    f"axis, got {_check.shape(rate)}"
                )
            _check.rate(op, f"the rate of {name}", rate)


def stateful(
    op: str,
    names: Sequence[str],
    lists: Sequence[list[Tensor]],
    rates: list[Any],
    more: tuple[Any, ...],
    values: Mapping[str, float | Tensor],
    static: tuple[Any, ...],
) -> list[list[Tensor]]:
    """The op on `lists` (params, grads, state) in the dtype of the state. `values`: numbers, or 0-dim tensors that get gradients; an op
    without any takes no list of these."""
    rates = finite_rates(op, rates)
    if not names:
        return [[] for _ in lists[1:]]
    dtypes = [[getattr(x, "dtype", None) for x in some] for some in (lists[0], *lists[2:])]
    narrow = dtypes[0][0]
    learned = [x for x in values.values() if isinstance(x, Tensor)]
    if narrow in LOW_PRECISION:
        lists, (rates, learned) = [_widened(x, narrow) for x in lists], (_widened(x, narrow) for x in (rates, learned))
    given = _arguments(lists, rates, more, learned, values, static)
    found = direct(op, *given)
    if found is None:
        _check_all(op, names, lists, rates, values, learned)
        found = call(op, *given)
    n = len(names)
    results = [list(found[i : i + n]) for i in range(0, len(found), n)]
    if narrow in LOW_PRECISION:
        return [[x.to(dtype) for x, dtype in zip(*some, strict=True)] for some in zip(results, dtypes, strict=True)]
    return results


def _arguments(
    lists: Sequence[list[Tensor]],
    rates: list[Any],
    more: tuple[Any, ...],
    learned: list[Tensor],
    values: Mapping[str, float | Tensor],
    static: tuple[Any, ...],
) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """What the op is called with: its arguments, those that are static, and the ranks of the arguments."""
    static = (*(None if isinstance(x, Tensor) else x for x in values.values()), *static)
    cores = (*((None,) for _ in range(len(lists) + 1)), *(None for _ in more), *([(None,)] if values else []))
    return (*lists, rates, *more, *([learned] if values else [])), static, cores


def stateful_pullback(
    op: str,
    lists: Sequence[list[Tensor]],
    rates: list[Any],
    more: tuple[Any, ...],
    values: Mapping[str, float],
    static: tuple[Any, ...],
    cotangents: Sequence[Tensor],
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """The gradients to `lists`, and to those of the rates that ask for one, from the cotangents of what `stateful` would give."""
    args, static, cores = _arguments(lists, rates, more, [], values, static)
    n = len(lists[0])
    wanted = [isinstance(x, Tensor) and x.requires_grad for x in rates]
    needs = (*(True,) * (n * len(lists)), *wanted, *(False for _ in more))
    found = pullback(op, args, static, cores, needs, *cotangents)
    ends = range(0, n * len(lists), n)
    return [list(found[i : i + n]) for i in ends], list(found[n * len(lists) :])


def _widened(some: list[Any], narrow: torch.dtype | None) -> list[Any]:
    return [x.float() if isinstance(x, Tensor) and x.dtype == narrow else x for x in some]


def _check_all(
    op: str,
    names: Sequence[str],
    lists: Sequence[list[Tensor]],
    rates: list[Any],
    values: Mapping[str, float | Tensor],
    learned: list[Tensor],
) -> None:
    params, grads, *states = lists
    check_tensors(op, names, params, grads, rates)
    for state in states:
        for name, p, g, s in zip(names, params, grads, state, strict=True):
            _check.floating(op, **{name: p, f"the state of {name}": s})
            if s.shape not in (g.shape, p.shape):
                raise ValueError(
                    f"{op}: the state of {name} must have the shape {_check.shape(g)} of its gradient, or that of the parameter, "
                    f"got {_check.shape(s)}"
                )
    for name, x in zip((name for name, x in values.items() if isinstance(x, Tensor)), learned, strict=True):
        _check.floating(op, **{names[0]: params[0], name: x})
        if x.ndim:
            raise ValueError(f"{op}: {name} must be a number or a 0-dim tensor, got shape {_check.shape(x)}")

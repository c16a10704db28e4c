"""What the ops of all networks check and bring into canonical form alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from .. import _check
from ..reference.mlp_loss import IGNORE_INDEX
from ._steps import tasks_first

LOSSES = ("cross_entropy", "mse")
MOST_STEPS = 1_000_000
Param = TypeVar("Param", Tensor, Tensor | None)  # an entry of params: a list without None gives one without None


@dataclass
class NetworkInput:
    """Checked parameters and examples, their batch dimensions folded into one task axis."""

    lead: list[int]  # batch dimensions
    params: list[Tensor | None]  # with one task axis, or shared without
    examples: dict[str, Tensor]  # with one task axis where there are batch dimensions
    ranks: Sequence[int]  # of one task's parameters, in turn
    outputs: int = -2  # place of the weight that gives the outputs

    def rank(self, i: int) -> int:
        return self.ranks[i % len(self.ranks)]

    def support(self, name: str, inputs: Tensor, rank: int, steps: Sequence[int]) -> Tensor:
        """Inputs that were checked, folded. `steps`: in front of the tasks, where each has a batch of its own."""
        return _check.fold(tasks_first(inputs, rank + 1), self.lead, rank + 1) if steps else self.examples[name]

    def targets(
        self,
        op: str,
        name: str,
        targets: Any,
        count: int,
        loss: str,
        weights: Any = None,
        of_weights: str = "weights",
        steps: Sequence[int] = (),
    ) -> Any:
        """Check the targets of inputs with `count` examples a task, and fold them; with weights, a list of both. `steps`: as in
        `support`."""
        like = self.params[0]
        assert like is not None
        core = [count] if loss == "cross_entropy" else [count, self.width]
        rank = len(steps) + len(core)
        shared = isinstance(targets, Tensor) and targets.ndim == rank
        shape = [*steps, *core] if shared else [*steps, *self.lead, *core]
        if loss == "cross_entropy":
            _check.labels(op, name, targets, shape, like.device)
            _check.label_range(op, name, targets, self.width, IGNORE_INDEX)
        else:
            _check.floating(op, **{"params[0]": like, name: targets})
            if list(targets.shape) != shape:
                raise ValueError(f"{op}: {name} must have shape {shape}, got {_check.shape(targets)}")
        folded = _check.fold(tasks_first(targets, rank) if steps else targets, self.lead, rank)
        if weights is None:
            return folded
        _check.floating(op, **{"params[0]": like, of_weights: weights})
        rank = len(steps) + 1
        shape = [*steps, *self.lead, count] if weights.ndim != rank else [*steps, count]
        if list(weights.shape) != shape:
            raise ValueError(f"{op}: {of_weights} must have shape {shape}, got {_check.shape(weights)}")
        return [folded, _check.fold(tasks_first(weights, rank) if steps else weights, self.lead, rank)]

    @property
    def width(self) -> int:
        """The number of outputs."""
        weight = self.params[self.outputs]
        assert weight is not None
        return weight.shape[-2]


def weighted(cores: tuple[Any, ...], place: int = -1) -> tuple[Any, ...]:
    """`cores` of a call whose targets, at `place`, are a list of targets and weights."""
    return *cores[:place], (cores[place], 1), *(cores[place + 1 :] if place + 1 else ())


def came(params: Any) -> str:
    """What came in the place of a sequence of parameters."""
    return f"{len(params)} entries" if isinstance(params, list | tuple) else type(params).__name__


def check_weights(op: str, params: Sequence[Any], places: Sequence[int]) -> None:
    for i in places:
        if params[i] is None:
            raise ValueError(f"{op}: params[{i}] must be a weight, got None")


def check_tensors(
    op: str, params: Sequence[Any], ranks: Sequence[int], examples: dict[str, Tensor], rank: int
) -> list[int]:
    """dtypes, devices, numbers of dimensions -> the batch dimensions. `ranks`: of one task's parameters, in turn; `rank`: of one
    task's examples."""
    named = {f"params[{i}]": p for i, p in enumerate(params) if p is not None}
    _check.floating(op, **named, **examples)
    _check.at_least(op, rank, **examples)
    of_named = {f"params[{i}]": ranks[i % len(ranks)] for i, p in enumerate(params) if p is not None}
    for name, p in named.items():
        _check.at_least(op, of_named[name], **{name: p})
    return _check.leads(op, of_named | dict.fromkeys(examples, rank), **examples, **named)


def folded(
    params: Sequence[Tensor | None],
    lead: list[int],
    ranks: Sequence[int],
    examples: dict[str, Tensor],
    rank: int,
    outputs: int = -2,
) -> NetworkInput:
    values = [
        None if p is None else _check.fold(p, lead, ranks[i % len(ranks)], shared=True) for i, p in enumerate(params)
    ]
    return NetworkInput(
        lead, values, {name: _check.fold(x, lead, rank) for name, x in examples.items()}, ranks, outputs
    )


def check_like_params(
    op: str, name: str, tree: Any, net: NetworkInput, params: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """A sequence in the structure of `params` with the full shape of each (all tasks): folded."""
    if not isinstance(tree, list | tuple) or len(tree) != len(params):
        came = len(tree) if isinstance(tree, list | tuple) else type(tree).__name__
        raise ValueError(f"{op}: {name} must be a sequence of {len(params)} entries like params, got {came}")
    folded: list[Tensor | None] = []
    for i, (v, p) in enumerate(zip(tree, params, strict=True)):
        if p is None:
            if v is not None:
                raise ValueError(f"{op}: {name}[{i}] must be None as params[{i}], got a tensor")
            folded.append(None)
            continue
        _check.floating(op, **{f"params[{i}]": p, f"{name}[{i}]": v})
        core = list(p.shape[p.ndim - net.rank(i) :])
        if list(v.shape) not in (core, [*net.lead, *core]):
            raise ValueError(f"{op}: {name}[{i}] must have shape {[*net.lead, *core]}, got {_check.shape(v)}")
        folded.append(_check.fold(v, net.lead, net.rank(i)))
    return folded


def like_params(flat: Sequence[Tensor], net: NetworkInput) -> list[Any]:
    """Flat outputs as a list like params, their task axis unfolded."""
    return in_order([_check.unfold(x, net.lead) for x in flat], net.params)


def check_rates(op: str, lr: Any, params: Sequence[Tensor | None], steps: int, ranks: Sequence[int]) -> list[Any]:
    """Rates as the kernels take them: a list of one for all, or of one for each parameter.

    One for all: a number, a 0-dim tensor, or `[steps]`. A sequence, all of one kind, which the first tells: numbers or 0-dim
    tensors, `[steps]`, the parameter's shape (without task axis), or `[steps, *shape]`.
    """
    if not isinstance(lr, list | tuple):
        return [_rate(op, "lr", lr, (), steps, params)]
    if len(lr) != len(params):
        raise ValueError(f"{op}: lr must have one entry for each of the {len(params)} params, got {len(lr)}")
    per_element = isinstance(lr[0], Tensor) and lr[0].ndim >= 2
    per_step = isinstance(lr[0], Tensor) and lr[0].ndim % 2 == 1  # a weight's rank is even
    rates: list[Any] = []
    for i, (rate, p) in enumerate(zip(lr, params, strict=True)):
        if p is None:
            if isinstance(rate, Tensor):
                raise ValueError(f"{op}: lr[{i}] must be None as params[{i}], got a tensor")
            rates.append(None)
            continue
        if isinstance(rate, Tensor):
            _check.dense(op, f"lr[{i}]", rate)
        core = tuple(p.shape[p.ndim - ranks[i % len(ranks)] :]) if per_element else ()
        if (rate.ndim if isinstance(rate, Tensor) else 0) != len(core) + per_step:
            raise ValueError(f"{op}: lr[{i}] must be of one kind with lr[0], {_kind(lr[0])}, got {_kind(rate)}")
        rates.append(_rate(op, f"lr[{i}]", rate, core, steps, params))
    return rates


def _kind(rate: Any) -> str:
    return f"shape {_check.shape(rate)}" if isinstance(rate, Tensor) else type(rate).__name__


def _rate(op: str, name: str, rate: Any, core: tuple[int, ...], steps: int, params: Sequence[Tensor | None]) -> Any:
    if isinstance(rate, Tensor):
        _check.floating(op, **{"params[0]": params[0], name: rate})
        if rate.shape not in (core, (steps, *core)):
            raise ValueError(f"{op}: {name} must have shape {list(core)} or {[steps, *core]}, got {_check.shape(rate)}")
    return _check.rate(op, name, rate)


def in_order(flat: Sequence[Tensor], params: Sequence[Tensor | None]) -> list[Any]:
    """Flat outputs as a list like params."""
    remaining = iter(flat)
    return [None if p is None else next(remaining) for p in params]


def listed(lr: Any, params: Any) -> Sequence[Any]:
    """One rate for all as a sequence; one for each parameter as it is."""
    each = isinstance(lr, list | tuple) and isinstance(params, list | tuple) and len(lr) == len(params)
    return lr if each else (lr,)


def first_with_graph(found: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The first output as it is; the others, where there are such, without a graph."""
    return found[0], *[y.detach() for y in found[1:]]


def refuse_labels(op: str, loss: str, params: Sequence[Tensor | None], **labels: Tensor) -> None:
    """ValueError for a class that the outputs do not have."""
    if loss == "cross_entropy":
        weight = params[-2]
        assert weight is not None
        for name, x in labels.items():
            _check.refuse_label_out_of_range(op, name, x, weight.shape[-2], IGNORE_INDEX)


def check_steps(op: str, steps: Any) -> int:
    return _check.integer(op, "steps", steps, 0, MOST_STEPS)

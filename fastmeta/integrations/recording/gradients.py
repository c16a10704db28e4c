"""Sums of recorded losses: their value, their gradient. Losses of one program, on other data, go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._torch import accumulate, has_gradient_hooks
from . import evaluate
from .recorded import Recorded, realised

AGAIN = (
    "Trying to backward through the graph a second time (or directly access saved tensors after they have already been freed). "
    "Saved intermediate values of the graph are freed when you call .backward() or autograd.grad(). Specify retain_graph=True if "
    "you need to backward through the graph a second time or if you need to access saved tensors after calling backward."
)  # torch's own words
Group = tuple[list[Any], list[float]]  # losses of one program, and what each counts


class Parts:
    """What a recorded scalar is the sum of, as far as gradients go: losses that are not computed, and tensors with what they count."""

    def __init__(self, of: Any) -> None:
        if of.freed:
            raise RuntimeError(AGAIN)
        self.of, self.leaves = of, of.leaves()
        counts: dict[int, float] = {}
        losses: dict[int, Any] = {}
        self.others: list[tuple[Tensor, Any]] = []
        for x, count, graph in self.leaves:
            recorded = issubclass(type(x), Recorded)
            if recorded and graph and x.freed:
                raise RuntimeError(AGAIN)
            if recorded and graph and _takes_gradient(x):
                losses[id(x)] = x
                counts[id(x)] = counts.get(id(x), 0.0) + count
            elif graph and isinstance(x, Tensor):
                self.others.append((realised(x), count))
        # Losses whose gradient is there, since their value was needed first; groups of the others.
        self.ahead = [(x, counts[id(x)] * x.scale) for x in losses.values() if x.pairs is not None]
        rest = [x for x in losses.values() if x.pairs is None]
        self.groups = [(group, [counts[id(x)] * x.scale for x in group]) for group in grouped(rest)]

    def keep_value(self) -> None:
        """The value of the sum, from those of the losses, which have been computed."""
        if (
            len(self.groups) == 1
            and not self.others
            and not self.ahead
            and len(self.groups[0][0]) == len(self.leaves)
            and self.of.what == "total"
        ):
            group, counts = self.groups[0]
            self.of.known = group[0].known[0], torch.tensor(counts, dtype=self.of.dtype)
            self.of.terms = ()
        self.of.freed = True


def _takes_gradient(x: Any) -> bool:
    """Whether it is a loss that is not computed, whose gradient a native op may take."""
    return x.what == "loss" and x.kept is None and x.origin.leads_back(x.k) and not x.origin.asked


def grouped(losses: Any) -> list[list[Any]]:
    """Those of one program."""
    found: dict[Any, list[Any]] = {}
    for x in losses:
        key = (x.key, x.x.shape, x.y.shape, x.kind, x.origin.start) if x.key is not None else x
        found.setdefault(key, []).append(x)
    return list(found.values())


def take(group: Sequence[Any], answer: Any) -> None:
    """Every loss its value; its gradient has been taken."""
    for i, x in enumerate(group):
        x.has_value(answer, i)
        x.free()


def take_ahead(losses: Sequence[tuple[Any, float]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Leaves and gradients to them of losses whose gradient is there."""
    for x, count in losses:
        for leaf, gradient in x.pairs:
            yield leaf, gradient if count == 1.0 else gradient * count
        x.free()


def back(group: list[Any], counts: list[float]) -> list[tuple[Tensor, Any]]:
    """Adds the gradient of a group to `.grad`; returns what is left to autograd."""
    with evaluate.in_grad_mode():
        answer = evaluate.back(group, counts, any(x.outputs() is not None for x in group))
        if answer is None:
            return [(x.computed(), count / x.scale) for x, count in zip(group, counts, strict=True)]
    take(group, answer)
    return []


def backward(of: Any) -> None:
    """of.backward()."""
    parts = Parts(of)
    others = [(x, torch.full_like(x, count)) for x, count in parts.others if x.requires_grad]
    answers, pairs = _answers(parts, others)
    ahead, rest = evaluate.apart(take_ahead(parts.ahead))
    if any(has_gradient_hooks(x) for x, _ in ahead):
        ahead, rest = [], rest + ahead
    others += rest
    if others:  # at once: they may share a graph
        torch.autograd.backward([x for x, _ in others], [g for _, g in others])
    elif not parts.groups and not parts.ahead:
        realised(of).backward()
    accumulate(pairs)
    accumulate(ahead)
    _took(parts, answers)


def _answers(parts: Parts, others: list[tuple[Tensor, Tensor]]) -> tuple[list[Any], list[tuple[Tensor, Tensor]]]:
    """The groups that were computed, with their values, and pairs of a leaf and a gradient. What is left to autograd joins `others`."""
    answers: list[Any] = []
    found: list[tuple[Tensor, Tensor]] = []
    with evaluate.in_grad_mode():
        for group, counts in parts.groups:
            answer = evaluate.with_gradients(group, counts, any(x.outputs() is not None for x in group))
            if answer is None:
                left = [(x.computed(), count / x.scale) for x, count in zip(group, counts, strict=True)]
                others += [(x, torch.full_like(x, count)) for x, count in left]
                continue
            values, pairs, cotangent = answer
            answers.append((group, (values[0].detach(), values[1])))
            if pairs is None:
                others.append((values[0], cotangent))
            else:
                leaves, rest = evaluate.apart(pairs)
                found += leaves
                others += rest
    return answers, found


def _took(parts: Parts, answers: list[Any]) -> None:
    for group, answer in answers:
        take(group, answer)
    if len(answers) == len(parts.groups):
        parts.keep_value()
    parts.of.freed = True


def gradients(of: Any, inputs: Sequence[Tensor], allow_unused: bool, materialize: bool) -> tuple[Tensor | None, ...]:
    """torch.autograd.grad(of, inputs)."""
    parts = Parts(of)
    found: dict[int, Any] = {id(x): None for x in inputs}

    def add(x: Any, gradient: Tensor | None) -> None:
        if gradient is not None and id(x) in found:
            found[id(x)] = gradient if found[id(x)] is None else found[id(x)] + gradient

    others = [(x, torch.full_like(x, count)) for x, count in parts.others if x.requires_grad]
    answers, pairs = _answers(parts, others)
    ahead, rest = evaluate.apart(take_ahead(parts.ahead))
    others += rest
    if others:
        of_others = torch.autograd.grad([x for x, _ in others], inputs, [g for _, g in others], allow_unused=True)
        for x, gradient in zip(inputs, of_others, strict=True):
            add(x, gradient)
    for x, gradient in (*pairs, *ahead):
        add(x, gradient)
    _took(parts, answers)
    each = [found[id(x)] for x in inputs]
    unused = next((i for i, g in enumerate(each) if g is None), None)
    if unused is not None and not allow_unused:
        raise RuntimeError(
            f"The differentiated Tensor at index {unused} appears to not have been used in the graph. Set allow_unused=True if this "
            "is the desired behavior."
        )
    return tuple(torch.zeros_like(x) if materialize and g is None else g for x, g in zip(inputs, each, strict=True))


def together(items: Sequence[Any]) -> list[Tensor]:
    """Each with its graph. Losses whose outputs and clones nobody has any more go together."""
    losses = {id(x): x for x in items if issubclass(type(x), Recorded) and not x.freed and _takes_gradient(x)}
    for group in grouped(losses.values()):
        if len(group) > 1 and not any(x.origin.is_asked() or x.outputs() is not None for x in group):
            with evaluate.in_grad_mode():
                answer = evaluate.values_of(group, False)
            if answer is not None:
                group[0].origin.start.used = True
                for x, value in zip(group, answer[0].unbind(), strict=True):
                    x.kept = value if x.scale == 1.0 else value * x.scale
    return [realised(x) for x in items]


def summed(of: Any) -> Tensor:
    """The sum with its graph."""
    leaves = of.leaves()
    total: Any = 0.0
    reached = iter(together([x for x, _, graph in leaves if graph]))
    for x, count, graph in leaves:
        total = total + (next(reached) if graph else value_of(x)) * count
    return total if isinstance(total, Tensor) else torch.tensor(total, dtype=of.dtype)


def value_of(x: Any) -> Any:
    if issubclass(type(x), Recorded):
        return x.evaluated()
    return x.detach() if isinstance(x, Tensor) else x


def value_of_sum(of: Any) -> Tensor:
    leaves = of.leaves()
    pending = {id(x): x for x, _, _ in leaves if issubclass(type(x), Recorded) and x.what == "loss" and x.pending}
    for group in grouped(pending.values()):
        if len(group) > 1 and not any(x.origin.asked for x in group):
            with evaluate.in_grad_mode(), torch.no_grad():
                answer = evaluate.values_of(group, any(x.outputs() is not None for x in group))
            for i, x in enumerate(group if answer is not None else ()):
                x.has_value(answer, i)
    return torch.tensor(sum(float(value_of(x)) * count for x, count, _ in reversed(leaves)), dtype=of.dtype)

"""Any module whose inner loop runs an optimiser: by the native ops that know both, else by `unroll`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..inner._steps import OPTIMISERS
from ..loops.optimisers import InnerOptimiser
from ..unroll import unroll
from .any_module import AnyModule
from .fused import Fused
from .inner_problem import Flat, Problem
from .network import Data


@dataclass
class WithOptimiser(AnyModule):
    """Takes an optimiser for `rates`, whose state starts anew in every task."""

    native: Fused | None = None  # the same network by its ops

    def losses(self, rates: Any, data: Data, weights: tuple[float, ...] | None = None) -> Tensor:
        ours = None if weights is not None else self._known(rates)
        found = ours and self.native.in_one_call(ours, data, return_outputs=False)  # type: ignore[union-attr]
        return found[0] if found else super().losses(rates, data, weights)

    def predict(self, rates: Any, data: Data) -> Tensor:
        ours = self._known(rates)
        found = None if ours is None else self.native.outputs_by_ops(ours, data)  # type: ignore[union-attr]
        return super().predict(rates, data) if found is None else found

    def losses_and_outputs(
        self, rates: Any, data: Data, weights: tuple[float, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        ours = None if weights is not None else self._known(rates)
        if ours and (found := self.native.in_one_call(ours, data, return_outputs=True)):  # type: ignore[union-attr]
            return found[0], found[1]
        with torch.no_grad():
            outputs = self.predict(rates, data[:3])
        return self.losses(rates, data, weights), outputs

    def on_query(
        self,
        rates: Any,
        data: Data,
        weights: tuple[float, ...] | None = None,
        start: Sequence[Tensor] = (),
        return_outputs: bool = False,
    ) -> Any:
        def solve(problem: Problem, flat: Flat) -> Tensor:
            return problem.join([_of_part(rates, problem, flat.theta, part) for part in problem.parts(flat)])

        def one_by_one(problem: Problem, flat: Flat) -> Tensor:
            return solve(replace(problem, at_once=1), flat)

        return self.run(solve, one_by_one, 0.0, data, weights)

    def _known(self, optimiser: InnerOptimiser) -> InnerOptimiser | None:
        """The optimiser as the native ops take it: numbers but for rates of one kind, on a CPU."""
        if self.native is None or type(optimiser) not in OPTIMISERS:
            return None
        leaves = self.native.leaves
        lr, *numbers = optimiser.values().values()
        if not leaves[0].is_cpu or isinstance(lr, list) or not all(isinstance(x, float) for x in numbers):
            return None
        if isinstance(lr, Mapping):
            names = [path.removeprefix("model.") for path in self.adapted]
            if set(lr) != set(names):
                return None
            lr = [lr[name] for name in names]
        return replace(optimiser, lr=lr) if _is_known(lr, leaves, self.steps) else None  # type: ignore[type-var]


def _is_known(lr: Any, leaves: Sequence[Tensor], steps: int) -> bool:
    """Whether the rates are of a kind that the ops have: one for all, or a list of numbers or of rates of elements."""
    entries = lr if isinstance(lr, list) else [lr]
    tensors = [x for x in entries if isinstance(x, Tensor)]
    if any(x.dtype != leaves[0].dtype or not x.is_cpu for x in tensors):
        return False
    if not isinstance(lr, list):
        return not tensors or list(lr.shape) in ([], [steps])
    if len(lr) != len(leaves) or len(tensors) not in (0, len(lr)):
        return False
    kinds: tuple[Any, ...] = ([[]] * len(leaves), [[*p.shape] for p in leaves], [[steps, *p.shape] for p in leaves])
    return not tensors or [[*x.shape] for x in tensors] in kinds


def _of_part(optimiser: InnerOptimiser, problem: Problem, start: Sequence[Tensor], part: Flat) -> Tensor:
    """The losses or the outputs for the query of some tasks, or of one."""
    several = problem.at_once > 1
    call: Callable[..., Tensor] = problem.call_tasks if several else problem.call
    query, names = part.data[2:], [path.removeprefix("model.") for path in problem.adapted]

    def on(params: Mapping[str, Tensor], *examples: Tensor, weight: float = 1.0) -> Tensor:
        found = call(list(params.values()), part.shared, *examples)
        return found if weight == 1.0 else weight * found

    if not problem.steps or not start:
        return on(dict(zip(names, part.theta, strict=True)), *query)
    options: Any = {"optimiser": optimiser, "steps": problem.steps, "first_order": problem.first_order}
    options["tasks"] = len(query[0]) if several else False
    support, params = part.data[:2], dict(zip(names, start, strict=True))
    if len(query) == 1:
        return on(unroll(on, params, support, **options)[0], *query)
    weights = problem.weights or (*[0.0] * (problem.steps - 1), 1.0)
    counted = [weight if weight or k == problem.steps else None for k, weight in enumerate(weights, 1)]
    outers = [None if w is None else lambda p, w=w: on(p, *query, weight=w) for w in counted]
    losses: Tensor = unroll(on, params, support, outer=outers, **options)[0]
    return losses.sum(0)

"""Any module whose inner loop runs an optimiser of `unroll`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..loops.optimisers import InnerOptimiser
from ..unroll import unroll
from .any_module import AnyModule
from .inner_problem import Flat, Problem
from .network import Data


class WithOptimiser(AnyModule):
    """Takes an optimiser for `rates`, whose state starts anew in every task."""

    def losses_and_outputs(
        self, rates: Any, data: Data, weights: tuple[float, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
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

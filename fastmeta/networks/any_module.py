"""Any module, by autograd: several tasks at once or one by one, no graph over the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..inner.sgd_step import sgd_step
from . import unrolled
from .chain import InnerLoop, Update, leaf
from .inner_problem import Flat, Problem
from .meta_gradient import query_losses, query_outputs
from .network import Data, Network


class AnyModule(Network):
    def losses(self, rates: Any, data: Data, weights: tuple[float, ...] | None = None) -> Tensor:
        found: Tensor = self.on_query(rates, data, weights)
        return found

    def losses_and_outputs(
        self, rates: Any, data: Data, weights: tuple[float, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        losses, outputs = self.on_query(rates, data, weights, return_outputs=True)
        return losses, outputs

    def predict(self, rates: Any, data: Data) -> Tensor:
        found: Tensor = self.on_query(rates, data)
        return found

    def on_query(
        self,
        rates: Any,
        data: Data,
        weights: tuple[float, ...] | None = None,
        start: Sequence[Tensor] = (),
        return_outputs: bool = False,
    ) -> Any:
        """`losses` where `data` has query_y, or `losses_and_outputs`, else `predict`. `start`: see `run`."""
        solve = query_losses if len(data) == 4 else query_outputs
        return self.run(solve, unrolled.on_query, rates, data, weights, start, return_outputs)

    def own_order(self, values: Sequence[Any]) -> list[Any]:
        """What ops give for parameters: as the model has them."""
        return list(values)

    def adapt(self, problem: Problem, flat: Flat, optimiser: Callable[[], Update] | None = None) -> list[Tensor]:
        support = flat._replace(data=flat.data[:2])
        needs = problem.flat([False] * len(support.items()))
        found = []
        for part in problem.parts(support):
            inner, theta = InnerLoop(problem, part, needs), list(part.theta)
            update = sgd_step if optimiser is None else optimiser()
            for k in range(problem.steps):
                leaves = [leaf(p, True) for p in theta]
                grads = self.gradients(inner, leaves, create_graph=False)
                with torch.no_grad():
                    theta = list(update(leaves, grads, problem.rates_at(inner.rates, k)))
            found.append(theta)
        return [problem.join(p) for p in zip(*found, strict=True)]

    def gradients(self, inner: InnerLoop, theta: Sequence[Tensor], create_graph: bool) -> list[Tensor]:
        return inner.gradients(theta, create_graph)

"""What the networks with ops of their own share. What their ops do not take goes to `AnyModule`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .._torch import PARAMETERS
from ..loops.optimisers import InnerOptimiser
from .any_module import AnyModule
from .network import Data


@dataclass
class Fused(AnyModule):
    params: list[Tensor | None]  # as the ops take them
    # Of each parameter that is there, its place among the model's; None: they are in order.
    order: tuple[int, ...] | None = field(default=None, kw_only=True)
    log_softmax: bool = field(
        default=False, kw_only=True
    )  # whether the model ends with it; the loss is then cross-entropy

    def spread(self, values: Any) -> Any:
        """One rate for all as it is; a list, of each of the model's parameters, in the structure of `params`."""
        if not isinstance(values, list):
            return values
        remaining = iter(values if self.order is None else [values[i] for i in self.order])
        return [None if p is None else next(remaining) for p in self.params]

    def own_order(self, values: Sequence[Any]) -> list[Any]:
        return list(values) if self.order is None else [values[self.order.index(i)] for i in range(len(values))]

    def steps_of(self, rates: Any) -> tuple[Any, InnerOptimiser | None]:
        """`lr` and `optimiser` of the ops."""
        if isinstance(rates, InnerOptimiser):
            lr = self.spread(rates.lr)  # type: ignore[attr-defined]
            return None, replace(rates, lr=lr)  # type: ignore[type-var]
        return self.spread(rates), None

    def in_one_call(self, rates: Any, data: Data, return_outputs: bool) -> tuple[Tensor, ...] | None:
        """The losses, and the outputs where they are asked for; None where the ops do not take the data."""
        raise NotImplementedError

    def outputs_by_ops(self, rates: Any, data: Data) -> Tensor | None:
        """`predict`; None where the ops do not take the data."""
        raise NotImplementedError

    def losses(self, rates: Any, data: Data, weights: tuple[float, ...] | None = None) -> Tensor:
        found = None if weights is not None else self.in_one_call(rates, data, return_outputs=False)
        return super().losses(rates, data, weights) if found is None else found[0]

    def losses_and_outputs(
        self, rates: Any, data: Data, weights: tuple[float, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        found = None if weights is not None else self.in_one_call(rates, data, return_outputs=True)
        if found is None:
            return super().losses_and_outputs(rates, data, weights)
        losses, outputs = found
        return losses, outputs

    def predict(self, rates: Any, data: Data) -> Tensor:
        found = self.outputs_by_ops(rates, data)
        return super().predict(rates, data) if found is None else found

    def losses_with_gradients(
        self, rates: Any, data: Data, counts: tuple[Tensor, ...], needs: tuple[bool, ...], return_outputs: bool
    ) -> Any:
        """`losses`, with the query outputs where they are asked for, without a graph; and the gradients of sum(counts * losses) to what
        `needs` marks of params, rates and data. None where there is no such native call."""
        raise NotImplementedError

    def with_end(self, found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The losses, and the outputs where they are there, these as the model gives them."""
        return found if len(found) < 2 else (found[0], self.end(found[1]))

    def end(self, outputs: Tensor) -> Tensor:
        return F.log_softmax(outputs, -1) if self.log_softmax else outputs

    @property
    def leaves(self) -> list[Tensor]:
        return self.own_order([p for p in self.params if p is not None])

    @property
    def classes(self) -> int | None:
        weight = self.params[-2]
        assert weight is not None
        return weight.shape[0] if self.task.loss == "cross_entropy" else None


def parameters_of(layer: nn.Module) -> list[Tensor | None]:
    """Its weight and its bias, None where there is none; neither where they stand in another order than a kernel takes them in."""
    ours: dict[str, Tensor | None] = getattr(layer, PARAMETERS)
    right = [*ours] in (["weight", "bias"], ["weight"])
    return [ours.get(name) if right else None for name in ("weight", "bias")]

"""What the networks with ops of their own share. What their ops do not take goes to `AnyModule`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .._torch import PARAMETERS
from .any_module import AnyModule
from .network import Data


@dataclass
class Fused(AnyModule):
    params: list[Tensor | None]  # as the ops take them

    def spread(self, values: Any) -> Any:
        """One rate for all as it is; a list without entries for absent biases in the structure of `params`."""
        if not isinstance(values, list):
            return values
        remaining = iter(values)
        return [None if p is None else next(remaining) for p in self.params]

    def losses_with_gradients(
        self, rates: Any, data: Data, counts: tuple[Tensor, ...], needs: tuple[bool, ...], return_outputs: bool
    ) -> Any:
        """`losses`, with the query outputs where they are asked for, without a graph; and the gradients of sum(counts * losses) to what
        `needs` marks of params, rates and data. None where there is no such native call."""
        raise NotImplementedError

    @property
    def leaves(self) -> list[Tensor]:
        return [p for p in self.params if p is not None]

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

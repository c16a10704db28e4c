from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..loops.optimisers import InnerOptimiser
from ..types import Loss
from . import _arguments
from .maml import MAML


class MetaSGD(MAML):
    r"""theta_{k+1} = theta_k - alpha * dL_support(theta_k)/dtheta, alpha one learned rate for each parameter, of any sign.

    Everything is as in `MAML`; `lr` is the number that all rates start from. The rates are the parameters `alpha.0`,
    `alpha.1`, ..., in the order of the model's parameters that are adapted when the learner is made. If a parameter is frozen
    later, its rate goes unused. If one is adapted that was not, it has no rate (ValueError). The rates take the place of an
    `optimiser`'s too: its `lr` is then the number that they start from.

    Source: Li et al. 2017, arXiv:1707.09835.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.01,
        steps: int = 1,
        *,
        loss: Loss | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        first_order: bool = False,
        adapt: Sequence[str] | None = None,
        loss_weights: Sequence[float] | None = None,
        task_chunk: int | None = None,
        optimiser: InnerOptimiser | None = None,
    ) -> None:
        super().__init__(
            model,
            lr,
            steps,
            loss=loss,
            first_order=first_order,
            adapt=adapt,
            loss_weights=loss_weights,
            task_chunk=task_chunk,
            optimiser=optimiser,
        )
        params = dict(model.named_parameters())
        self._rated = self.adapted  # the names that the rates belong to
        start = _arguments.number("MetaSGD", "lr", lr if optimiser is None else optimiser.values()["lr"])
        self.alpha = nn.ParameterList([nn.Parameter(torch.full_like(params[path], start)) for path in self._rated])

    def _rates(self) -> Any:
        if self._optimiser is None:
            return self.rates()
        names = (path.removeprefix("model.") for path in self._plan().adapted)
        return replace(self.inner_optimiser, lr=dict(zip(names, self.rates(), strict=True)))  # type: ignore[type-var]

    def rates(self) -> list[Tensor]:
        """The rates of the parameters that are adapted now."""
        alpha, adapted = list(self.alpha), self._plan().adapted
        if adapted == self._rated:
            return alpha
        of = dict(zip(self._rated, alpha, strict=True))
        for path in adapted:
            if path not in of:
                raise ValueError(
                    f"{self._name}: there must be a rate for each adapted parameter, got none for {path!r}, which came later"
                )
        return [of[path] for path in adapted]

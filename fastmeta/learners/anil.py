from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..networks.encoder import features_of_tasks
from ..types import Loss
from . import _arguments
from .maml import MAML


class ANIL(MAML):
    r"""theta_{k+1} = theta_k - lr * dL_support(theta_k)/dtheta for the parameters theta of `head` alone, on features of `body`.

    `body`: any module `[n, ...] -> [n, ...]`. It is trained, not adapted: its gradient comes through the features of support and
    query, the inner steps included. It sees a task's support and query as one batch. Batch norm in it uses the statistics of
    that batch, one task after the other.
    `head` and everything else is as MAML's `model`: a linear layer or an MLP runs all its tasks in one native call.

        # support_x [T, S, ...], support_y [T, S], query_x [T, Q, ...]
        learner(support_x, support_y, query_x)  # the adapted heads' outputs
        learner.loss(support_x, support_y, query_x, query_y)  # query loss [T]

    Source: Raghu et al. 2020, arXiv:1909.09157.
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Module,
        lr: float | Tensor = 0.01,
        steps: int = 1,
        *,
        loss: Loss | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        first_order: bool = False,
    ) -> None:
        _arguments.module("ANIL", "body", body)
        _arguments.module("ANIL", "head", head)
        super().__init__(head, lr, steps, loss=loss, first_order=first_order)
        self.body = body

    def _predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        support, query = self._features(support_x, query_x)
        return super()._predict(support, support_y, query)

    def _losses(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        support, query = self._features(support_x, query_x)
        return super()._losses(support, support_y, query, query_y)

    def _losses_and_outputs(self, *data: Tensor) -> tuple[Tensor, Tensor]:
        support, query = self._features(data[0], data[2])
        return super()._losses_and_outputs(support, data[1], query, data[3])

    def _of_one_task(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(self.body(x))
        return found

    def _features(self, support_x: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
        features = features_of_tasks(self, self.body, torch.cat([support_x, query_x], 1))
        return features[:, : support_x.shape[1]], features[:, support_x.shape[1] :]

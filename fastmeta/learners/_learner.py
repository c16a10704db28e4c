"""What all learners share: one call that predicts or, with the query's targets, gives the loss."""

from __future__ import annotations

from torch import Tensor, nn


class Learner(nn.Module):
    """learner(support_x, support_y, query_x) predicts the query; learner(support_x, support_y, query_x, query_y) is the loss [T].

    So the loss can be had from forward(), the only call that wrappers like DistributedDataParallel and module hooks see.
    """

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor | None = None) -> Tensor:
        if query_y is None:
            return self._predict(support_x, support_y, query_x)
        return self.loss(support_x, support_y, query_x, query_y)

    def _predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        raise NotImplementedError

    def loss(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        raise NotImplementedError

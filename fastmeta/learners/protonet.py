from __future__ import annotations

from torch import Tensor, nn

from .._ask import OF_FEATURES, OF_SUPPORT, ask
from ..distance.proto_log_softmax import proto_log_softmax
from ..distance.proto_loss import proto_loss
from ..distance.prototypes import prototypes
from ..types import Metric
from . import _arguments
from ._episode import ways_of
from ._of_features import OfFeatures


class ProtoNet(OfFeatures):
    r"""log p(y = k | x) = log_softmax_k(-d(f(x), c_k) / temperature), c_k = mean of f over the support of class k.

    `encoder`: any module that maps `[n, ...]` to `[n, ...]`; its outputs are flattened to features. Support and query of all
    tasks go through it as one batch, as in the authors' code, so batch norm in training mode averages over all of them.
    `metric`: "euclidean", "sqeuclidean" (the paper's) or "cosine".
    `temperature`: a positive float, or an `nn.Parameter` with one element, which is then learned.
    `num_classes`: the number of ways. None reads it from the labels of each call, which on CUDA waits for the device and warns
    once.

        # support_x [T, S, ...], support_y [T, S], query_x [T, Q, ...]
        learner(support_x, support_y, query_x)  # log p [T, Q, N]
        learner.loss(support_x, support_y, query_x, query_y)  # mean [T]

    Source: Snell et al. 2017, arXiv:1703.05175.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        metric: Metric = "euclidean",
        temperature: float | Tensor = 1.0,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(encoder, temperature, num_classes)
        _arguments.metric("ProtoNet", metric)
        self.metric = metric

    def _predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        query, centres = self._embed(support_x, support_y, query_x)
        return ask(
            self._name, proto_log_softmax, OF_FEATURES, query, centres, metric=self.metric, temperature=self.temperature
        )

    def _losses(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        query, centres = self._embed(support_x, support_y, query_x)
        return ask(
            self._name,
            proto_loss,
            OF_FEATURES,
            query,
            centres,
            query_y,
            metric=self.metric,
            temperature=self.temperature,
        )

    def _embed(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
        ways = ways_of(self._name, self.num_classes, support_y)
        support, query = self._features(support_x, query_x)
        return query, ask(self._name, prototypes, OF_SUPPORT, support, support_y, ways)

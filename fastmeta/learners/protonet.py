from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ragged
from .._ask import OF_FEATURES, OF_SUPPORT, ask
from ..distance.proto_log_softmax import proto_log_softmax
from ..distance.proto_loss import proto_loss
from ..distance.prototypes import prototypes
from ..types import Metric
from . import _arguments
from ._episode import check_tasks, ways_of
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
        # tasks of different sizes: lists of T tensors
        learner.ragged_loss(support_x, support_y, query_x, query_y)  # mean [T]

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

    def ragged(
        self, support_x: Sequence[Tensor], support_y: Sequence[Tensor], query_x: Sequence[Tensor]
    ) -> list[Tensor]:
        """log p `[Q_t, N_t]` of each of T tasks with ways, shots and queries of their own: lists of T tensors `[S_t, ...]`, `[S_t]` and
        `[Q_t, ...]`. `num_classes` None: N_t is read from each task's labels. One batch through the encoder; errors as in `loss`."""
        query, centres, sizes, ways = self._embed_ragged(support_x, support_y, query_x)
        options: dict[str, Any] = {"metric": self.metric, "temperature": self.temperature}
        return ask(self._name, ragged.proto_log_softmax, OF_FEATURES, query, centres, sizes, ways, **options)

    def ragged_loss(
        self,
        support_x: Sequence[Tensor],
        support_y: Sequence[Tensor],
        query_x: Sequence[Tensor],
        query_y: Sequence[Tensor],
    ) -> Tensor:
        """The loss on the query of each of T tasks, `[T]`, as `loss`, from lists as in `ragged`, with query_y of T tensors `[Q_t]`; its
        cost is that of `fastmeta.ragged.proto_loss`."""
        query, centres, sizes, ways = self._embed_ragged(support_x, support_y, query_x, query_y)
        options: dict[str, Any] = {"metric": self.metric, "temperature": self.temperature}
        return ask(
            self._name, ragged.proto_loss, OF_FEATURES, query, centres, torch.cat([*query_y]), sizes, ways, **options
        )

    def _embed_ragged(
        self, support_x: Sequence[Tensor], support_y: Sequence[Tensor], *of_query: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, list[int], list[int]]:
        """Features of all queries, all prototypes, and how many of both each task has."""
        check_tasks(self._name, support_x, support_y, *of_query)
        shots, sizes = ([x.shape[0] for x in of_tasks] for of_tasks in (support_x, of_query[0]))
        ways = [ways_of(self._name, self.num_classes, y) for y in support_y]
        support, query = self._encoded(torch.cat([*support_x, *of_query[0]])).split([sum(shots), sum(sizes)])
        centres = ask(self._name, ragged.prototypes, OF_SUPPORT, support, torch.cat([*support_y]), shots, ways)
        return query, centres, sizes, ways

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._ask import OF_FEATURES, OF_SUPPORT, ask
from ..distance.proto_log_softmax import proto_log_softmax
from ..distance.proto_loss import proto_loss
from ..distance.prototypes import prototypes
from ..networks.encoder import encode
from ..types import Metric
from . import _arguments
from ._episode import known_ways, losses_of, ways_of
from ._learner import Learner


class ProtoNet(Learner):
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
        super().__init__()
        _arguments.module("ProtoNet", "encoder", encoder)
        _arguments.metric("ProtoNet", metric)
        _arguments.temperature("ProtoNet", temperature)
        _arguments.whole("ProtoNet", "num_classes", num_classes, 1, optional=True)
        self.encoder, self.metric, self.num_classes = encoder, metric, num_classes
        self.temperature = temperature

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

    def _losses_and_outputs(self, *data: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = self._predict(*data[:3])
        return losses_of(self._name, log_probs, data[3]), log_probs.detach()

    def _embed(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
        ways = ways_of(self._name, self.num_classes, support_y)
        support, query = features_of_both(self, self.encoder, support_x, query_x)
        return query, ask(self._name, prototypes, OF_SUPPORT, support, support_y, ways)

    def _outputs_of(self, query_x: Tensor) -> Sequence[int]:
        return known_ways(self._name, self.num_classes)


def features_of_both(learner: Learner, encoder: nn.Module, support_x: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
    """[T, S, D], [T, Q, D]: both of all tasks as one batch through the encoder."""
    tasks, shots = support_x.shape[:2]
    both = torch.cat([support_x, query_x], 1).flatten(0, 1)
    features = encode(learner, encoder, both)
    _arguments.features(learner._name, "encoder", features, both.shape[0])
    features = features.reshape(tasks, both.shape[0] // tasks, -1)
    return features[:, :shots], features[:, shots:]

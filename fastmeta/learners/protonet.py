from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.proto_log_softmax import METRICS, proto_log_softmax
from ..ops.proto_loss import proto_loss
from ..ops.prototypes import prototypes
from ._episode import check_episode
from ._learner import Learner


class ProtoNet(Learner):
    r"""log p(y = k | x) = log_softmax_k(-d(f(x), c_k) / temperature), c_k = mean of f over the support of class k.

    `encoder`: any module that maps `[n, ...]` to `[n, ...]`; its outputs are flattened to features. Support and query of all
    tasks go through it as one batch, as in the authors' code (so batch norm in training mode averages over them).
    `metric`: "euclidean", "sqeuclidean" (the paper's) or "cosine". `temperature`: a positive float, or an `nn.Parameter` with
    one element, which is then learned. `num_classes`: the number of ways; None reads it from the labels (on CUDA that waits for
    the device).

        learner(support_x, support_y, query_x)        # [T, S, ...], [T, S], [T, Q, ...] -> log p [T, Q, N]
        learner.loss(support_x, support_y, query_x, query_y)  # -> mean query loss of each task [T]

    Source: Snell et al. 2017, arXiv:1703.05175.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        metric: str = "euclidean",
        temperature: float | Tensor = 1.0,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if metric not in METRICS:
            raise ValueError(f"ProtoNet: metric must be one of {', '.join(map(repr, METRICS))}, got {metric!r}")
        self.encoder, self.metric, self.num_classes = encoder, metric, num_classes
        self.temperature = temperature

    def _predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        check_episode("ProtoNet", support_x, support_y, query_x)
        query, centres = self._embed(support_x, support_y, query_x)
        return proto_log_softmax(query, centres, metric=self.metric, temperature=self.temperature)

    def loss(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        """The mean of -log p(query_y) of each task, [T]; queries with label -100 are left out."""
        check_episode("ProtoNet", support_x, support_y, query_x, query_y)
        query, centres = self._embed(support_x, support_y, query_x)
        return proto_loss(query, centres, query_y, metric=self.metric, temperature=self.temperature)

    def _embed(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
        tasks, shots = support_x.shape[:2]
        both = torch.cat([support_x, query_x], 1)
        features = self.encoder(both.flatten(0, 1)).reshape(tasks, both.shape[1], -1)
        ways = self.num_classes if self.num_classes is not None else int(support_y.max()) + 1
        return features[:, shots:], prototypes(features[:, :shots], support_y, ways)

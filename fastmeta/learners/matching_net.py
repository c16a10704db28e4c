from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._ask import OF_FEATURES, OF_SUPPORT, ask
from ..distance.matching_log_probs import matching_log_probs
from ..types import Metric
from . import _arguments
from ._episode import ways_of
from ._of_features import OfFeatures


class MatchingNet(OfFeatures):
    r"""log p(y = k | x) = log sum_{i: y_i = k} a_i, a = softmax_i(cos(f(x), g(x_i)) / temperature) over a task's support.

    `encoder`: any module that maps `[n, ...]` to `[n, ...]`; its outputs are flattened to features. Support and query of all
    tasks go through it as one batch.
    `metric`, `temperature`, `num_classes`: as in `ProtoNet`; "cosine" is the paper's metric.
    `context`: None, so that f = g = encoder, or a `FullContext`, which reads every example in the light of the whole support.

        # support_x [T, S, ...], support_y [T, S], query_x [T, Q, ...]
        learner(support_x, support_y, query_x)  # log p [T, Q, N]
        learner.loss(support_x, support_y, query_x, query_y)  # mean [T]

    Source: Vinyals et al. 2016, arXiv:1606.04080.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        context: FullContext | None = None,
        metric: Metric = "cosine",
        temperature: float | Tensor = 1.0,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(encoder, temperature, num_classes)
        _arguments.module("MatchingNet", "context", context, optional=True)
        _arguments.metric("MatchingNet", metric)
        self.context, self.metric = context, metric

    def _predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        ways = ways_of(self._name, self.num_classes, support_y)
        support, query = self._features(support_x, query_x)
        if self.context is not None:
            support, query = self.context(support, query)
        return ask(
            self._name, matching_log_probs, OF_FEATURES | OF_SUPPORT, query, support, support_y, ways,
            metric=self.metric, temperature=self.temperature,
        )  # fmt: skip


class FullContext(nn.Module):
    r"""Full context embeddings: support `[T, S, D]`, query `[T, Q, D]` features -> the same shapes.

    Support, read in its order by an LSTM in both directions: g_i = forward_i + backward_i + x_i.
    Query, `steps` times with attention over it: h_k = LSTM(x, [h_{k-1}, r_{k-1}]) + x, r_k = sum_i softmax_i(h_k . g_i) g_i.

    `features`: D. Source: Vinyals et al. 2016, arXiv:1606.04080, sections 2.1.2 and A.
    """

    def __init__(self, features: int, steps: int = 5) -> None:
        super().__init__()
        _arguments.whole("FullContext", "features", features, 1)
        _arguments.whole("FullContext", "steps", steps, 1)
        self.steps = steps
        self.support = nn.LSTM(features, features, batch_first=True, bidirectional=True)
        self.of_input = nn.Linear(features, 4 * features)  # the gates of the query's LSTM
        self.of_state = nn.Linear(2 * features, 4 * features, bias=False)

    if TYPE_CHECKING:  # torch.nn.Module's takes and gives Any

        def __call__(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]: ...

    def forward(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        ahead, back = self.support(support)[0].chunk(2, -1)
        g = ahead + back + support
        gates_of_input = self.of_input(query)
        h, r, cell = query, torch.zeros_like(query), torch.zeros_like(query)
        for k in range(self.steps):
            gates = gates_of_input + self.of_state(torch.cat([h, r], -1)) if k else gates_of_input
            remember, write, out, new = gates.chunk(4, -1)
            cell = remember.sigmoid() * cell + write.sigmoid() * new.tanh()
            h = out.sigmoid() * cell.tanh() + query
            r = (h @ g.mT).softmax(-1) @ g
        return g, h

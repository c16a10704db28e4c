from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._scores import matching_scores
from .few_shot_classifier import FewShotClassifier


class MatchingNetworks(FewShotClassifier):
    """log(sum_{i: y_i = k} a_i + 1e-6), a = softmax_i(<f(x), g_i> / |g_i|): f and g in the light of the support, by LSTMs.

    `feature_dimension`: D. `support_encoder`: a bidirectional LSTM, batch first; `query_encoder`: a cell of an LSTM whose input is
    2 D. The query runs through the cell once for every example of the support. Source: Vinyals et al. 2016, arXiv:1606.04080.
    """

    def __init__(
        self,
        *args: Any,
        feature_dimension: int,
        support_encoder: nn.Module | None = None,
        query_encoder: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.feature_dimension = D = feature_dimension
        self.support_features_encoder = support_encoder or nn.LSTM(D, D, batch_first=True, bidirectional=True)
        self.query_features_encoding_cell = query_encoder or nn.LSTMCell(2 * D, D)
        self.softmax = nn.Softmax(dim=1)
        self.contextualized_support_features = self.one_hot_support_labels = torch.tensor(())

    def process_support_set(self, support_images: Tensor, support_labels: Tensor) -> None:
        features = self.compute_features(support_images)
        self._validate_features_shape(features)
        self.contextualized_support_features = self.encode_support_features(features)
        self.one_hot_support_labels = F.one_hot(support_labels.long()).to(features)

    def forward(self, query_images: Tensor) -> Tensor:
        if len(self.contextualized_support_features) == 0:
            raise RuntimeError(
                "MatchingNetworks: process_support_set(support_images, support_labels) must come first, got none"
            )
        features = self.compute_features(query_images)
        self._validate_features_shape(features)
        found = matching_scores(
            self.encode_query_features(features), self.contextualized_support_features, self.one_hot_support_labels
        )
        return self.softmax_if_specified(found)

    def encode_support_features(self, support_features: Tensor) -> Tensor:
        """g_i: an example, and the states that the LSTM has there in both directions, added, [S, D]."""
        states = self.support_features_encoder(support_features.unsqueeze(0))[0].squeeze(0)
        ahead, back = states.split(self.feature_dimension, dim=1)
        found: Tensor = support_features + ahead + back
        return found

    def encode_query_features(self, query_features: Tensor) -> Tensor:
        """Cell after cell on the query and what it finds in the support by attention, the query added to each state, [Q, D]."""
        support, state = self.contextualized_support_features, query_features
        memory = torch.zeros_like(query_features)
        for _ in range(len(support)):
            read = self.softmax(state @ support.mT) @ support
            state, memory = self.query_features_encoding_cell(torch.cat([query_features, read], 1), (state, memory))
            state = state + query_features
        return state

    def _validate_features_shape(self, features: Tensor) -> None:
        self._raise_error_if_features_are_multi_dimensional(features)
        if features.shape[1] != self.feature_dimension:
            D = self.feature_dimension
            raise ValueError(f"MatchingNetworks: features must have {D} dimensions, got {features.shape[1]}")

    @staticmethod
    def is_transductive() -> bool:
        return False

"""Few-shot classifiers that take one episode at a time: first its support, then queries. `fastmeta.ProtoNet` and
`fastmeta.MatchingNet` take all episodes at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._scores import class_means, matching_scores, scores


class FewShotClassifier(nn.Module):
    """`backbone`: any module [n, ...] -> [n, D], None the identity. `use_softmax`: return probabilities. `feature_centering` [D]
    is taken off all features, which then get the norm of order `feature_normalization` 1, where these are given."""

    def __init__(
        self,
        backbone: nn.Module | None = None,
        use_softmax: bool = False,
        feature_centering: Tensor | None = None,
        feature_normalization: float | None = None,
    ) -> None:
        super().__init__()
        self.backbone = nn.Identity() if backbone is None else backbone
        self.use_softmax, self.feature_normalization = use_softmax, feature_normalization
        self.prototypes = self.support_features = self.support_labels = torch.tensor(())
        self.feature_centering = torch.tensor(0) if feature_centering is None else feature_centering

    def forward(self, query_images: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__}: forward must be written, got none")

    @staticmethod
    def is_transductive() -> bool:
        return False

    def process_support_set(self, support_images: Tensor, support_labels: Tensor) -> None:
        self.compute_prototypes_and_store_support_set(support_images, support_labels)

    def compute_prototypes_and_store_support_set(self, support_images: Tensor, support_labels: Tensor) -> None:
        features = self.compute_features(support_images)
        self._validate_features_shape(features)
        self.support_features, self.support_labels = features, support_labels
        self.prototypes = class_means(features, support_labels)

    def compute_features(self, images: Tensor) -> Tensor:
        features = self.backbone(images) - self.feature_centering
        if self.feature_normalization is None:
            return features
        return F.normalize(features, p=self.feature_normalization, dim=1)

    def softmax_if_specified(self, output: Tensor, temperature: float = 1.0) -> Tensor:
        return (temperature * output).softmax(-1) if self.use_softmax else output

    def l2_distance_to_prototypes(self, samples: Tensor) -> Tensor:
        """-|x - c_k|, [Q, D] -> [Q, N]."""
        return scores(samples, self.prototypes, "euclidean")

    def cosine_distance_to_prototypes(self, samples: Tensor) -> Tensor:
        """cos(x, c_k), [Q, D] -> [Q, N]."""
        return F.normalize(samples, dim=1) @ F.normalize(self.prototypes, dim=1).mT

    def _validate_features_shape(self, features: Tensor) -> None:
        if features.ndim != 2:
            name = type(self).__name__
            raise ValueError(f"{name}: features of n images must have the shape [n, D], got {list(features.shape)}")


class PrototypicalNetworks(FewShotClassifier):
    """-|f(x) - c_k|, c_k the mean of f over the support of class k. Source: Snell et al. 2017, arXiv:1703.05175."""

    def forward(self, query_images: Tensor) -> Tensor:
        features = self.compute_features(query_images)
        self._validate_features_shape(features)
        return self.softmax_if_specified(self.l2_distance_to_prototypes(features))


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
        self.one_hot_support_labels = F.one_hot(support_labels).to(features)

    def forward(self, query_images: Tensor) -> Tensor:
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
        return support_features + ahead + back

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
        super()._validate_features_shape(features)
        if features.shape[1] != self.feature_dimension:
            D = self.feature_dimension
            raise ValueError(f"MatchingNetworks: features must have {D} dimensions, got {features.shape[1]}")

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import _arguments
from ..._scores import scores
from .utils import compute_prototypes


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
        name = type(self).__name__
        if backbone is not None:
            _arguments.module(name, "backbone", backbone)
        if feature_centering is not None:
            _arguments.tensor(name, "feature_centering", feature_centering)
        if feature_normalization is not None:
            _arguments.number(name, "feature_normalization", feature_normalization)
        self.backbone = nn.Identity() if backbone is None else backbone
        self.use_softmax, self.feature_normalization = use_softmax, feature_normalization
        self.prototypes = self.support_features = self.support_labels = torch.tensor(())
        self.feature_centering = torch.tensor(0) if feature_centering is None else feature_centering

    def forward(self, query_images: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__}: forward must be written, got none")

    @staticmethod
    def is_transductive() -> bool:
        raise NotImplementedError("FewShotClassifier: is_transductive must be written, got none")

    def process_support_set(self, support_images: Tensor, support_labels: Tensor) -> None:
        self.compute_prototypes_and_store_support_set(support_images, support_labels)

    def compute_prototypes_and_store_support_set(self, support_images: Tensor, support_labels: Tensor) -> None:
        self.support_labels = support_labels
        self.support_features = self.compute_features(support_images)
        self._raise_error_if_features_are_multi_dimensional(self.support_features)
        self.prototypes = compute_prototypes(self.support_features, support_labels)

    def compute_features(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(images) - self.feature_centering
        if self.feature_normalization is None:
            return features
        return F.normalize(features, p=self.feature_normalization, dim=1)

    def softmax_if_specified(self, output: Tensor, temperature: float = 1.0) -> Tensor:
        return (temperature * output).softmax(-1) if self.use_softmax else output

    def l2_distance_to_prototypes(self, samples: Tensor) -> Tensor:
        """-|x - c_k|, [Q, D] -> [Q, N]."""
        self._after_support()
        return scores(samples, self.prototypes, "euclidean")

    def cosine_distance_to_prototypes(self, samples: Tensor) -> Tensor:
        """cos(x, c_k), [Q, D] -> [Q, N]."""
        self._after_support()
        return F.normalize(samples, dim=1) @ F.normalize(self.prototypes, dim=1).mT

    def _after_support(self) -> None:
        if self.prototypes.ndim < 2:
            name = type(self).__name__
            raise RuntimeError(f"{name}: process_support_set(support_images, support_labels) must come first, got none")

    @staticmethod
    def _raise_error_if_features_are_multi_dimensional(features: Tensor) -> None:
        if features.ndim != 2:
            came = list(features.shape)
            raise ValueError(f"FewShotClassifier: features of n images must have the shape [n, D], got {came}")

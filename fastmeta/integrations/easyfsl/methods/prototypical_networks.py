from torch import Tensor

from ...recording import recorded_scores
from .few_shot_classifier import FewShotClassifier


class PrototypicalNetworks(FewShotClassifier):
    """-|f(x) - c_k|, c_k the mean of f over the support of class k. Source: Snell et al. 2017, arXiv:1703.05175."""

    def forward(self, query_images: Tensor) -> Tensor:
        features = self.compute_features(query_images)
        self._raise_error_if_features_are_multi_dimensional(features)
        plain = type(self) is PrototypicalNetworks and not self.use_softmax
        found = recorded_scores(features, self.prototypes, "euclidean") if plain else None
        return self.softmax_if_specified(self.l2_distance_to_prototypes(features)) if found is None else found

    @staticmethod
    def is_transductive() -> bool:
        return False

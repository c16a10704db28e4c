from torch import Tensor

from .few_shot_classifier import FewShotClassifier


class PrototypicalNetworks(FewShotClassifier):
    """-|f(x) - c_k|, c_k the mean of f over the support of class k. Source: Snell et al. 2017, arXiv:1703.05175."""

    def forward(self, query_images: Tensor) -> Tensor:
        features = self.compute_features(query_images)
        self._raise_error_if_features_are_multi_dimensional(features)
        return self.softmax_if_specified(self.l2_distance_to_prototypes(features))

    @staticmethod
    def is_transductive() -> bool:
        return False

"""What learners share that compare features of an encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..networks.encoder import encode
from . import _arguments
from ._episode import known_ways, losses_of
from ._learner import Learner


class OfFeatures(Learner):
    def __init__(self, encoder: nn.Module, temperature: float | Tensor, num_classes: int | None) -> None:
        super().__init__()
        _arguments.module(self._name, "encoder", encoder)
        _arguments.temperature(self._name, temperature)
        _arguments.whole(self._name, "num_classes", num_classes, 1, optional=True)
        self.encoder, self.temperature, self.num_classes = encoder, temperature, num_classes

    def _losses(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        return self._losses_and_outputs(support_x, support_y, query_x, query_y)[0]

    def _losses_and_outputs(self, *data: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = self._predict(*data[:3])
        return losses_of(self._name, log_probs, data[3]), log_probs.detach()

    def _outputs_of(self, query_x: Tensor) -> Sequence[int]:
        return known_ways(self._name, self.num_classes)

    def _features(self, support_x: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
        """[T, S, D], [T, Q, D]: both of all tasks as one batch through the encoder."""
        tasks, shots = support_x.shape[:2]
        features = self._encoded(torch.cat([support_x, query_x], 1).flatten(0, 1))
        features = features.unflatten(0, (tasks, features.shape[0] // tasks))
        return features[:, :shots], features[:, shots:]

    def _encoded(self, x: Tensor) -> Tensor:
        """[n, D]."""
        features = encode(self, self.encoder, x)
        _arguments.features(self._name, "encoder", features, x.shape[0])
        return features.reshape(x.shape[0], -1)

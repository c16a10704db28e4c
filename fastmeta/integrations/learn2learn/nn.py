"""The head of a prototypical network. `fastmeta.proto_loss` takes all tasks at once and returns their losses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...ops.prototypes import prototypes
from .._scores import scores

EPS = 1e-8


class PrototypicalClassifier(nn.Module):
    """-|x - c_k|^2 ("euclidean") or <x, c_k> of unit vectors ("cosine"), c_k the mean of the support of the k-th smallest label.

    `distance`: one of these names, or a function (prototypes [N, D], queries [Q, D]) -> [Q, N]. `normalize`: support means and
    queries become unit vectors first, as they do with "cosine".
    """

    def __init__(
        self,
        support: Tensor | None = None,
        labels: Tensor | None = None,
        distance: str | Callable[[Tensor, Tensor], Tensor] = "euclidean",
        normalize: bool = False,
    ) -> None:
        super().__init__()
        named = {"euclidean": self.euclidean_distance, "cosine": self.cosine_distance}
        if isinstance(distance, str) and distance not in named:
            raise ValueError(
                f"PrototypicalClassifier: distance must be 'euclidean', 'cosine' or a function, got {distance!r}"
            )
        self.normalize = normalize or distance == "cosine"
        self.distance = named[distance] if isinstance(distance, str) else distance
        self.prototypes: Tensor | None = None
        if support is not None and labels is not None:
            self.fit_(support, labels)

    def fit_(self, support: Tensor, labels: Tensor) -> Tensor:
        """Take the prototypes from support [S, D] and its labels [S]; returns them."""
        classes, of_class = torch.unique(labels, return_inverse=True)
        found = prototypes(support, of_class, len(classes))
        self.prototypes = unit(found) if self.normalize else found
        return self.prototypes

    @staticmethod
    def euclidean_distance(prototypes: Tensor, queries: Tensor) -> Tensor:
        return -scores(queries, prototypes, "sqeuclidean")

    @staticmethod
    def cosine_distance(prototypes: Tensor, queries: Tensor) -> Tensor:
        """Of unit vectors."""
        return -queries @ prototypes.mT

    def forward(self, x: Tensor) -> Tensor:
        if self.prototypes is None:
            raise RuntimeError("PrototypicalClassifier: fit_(support, labels) must come before a query, got none")
        return -self.distance(self.prototypes, unit(x) if self.normalize else x)


def unit(x: Tensor) -> Tensor:
    return x / (x.norm(dim=1, keepdim=True) + EPS)

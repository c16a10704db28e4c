"""The head of a prototypical network, and the small modules of learn2learn. `fastmeta.proto_loss` takes all tasks at once and
returns their losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _arguments, _library
from .._scores import class_means, scores
from .._steps import Module
from ..recording import recorded_scores

__all__ = ["Flatten", "Lambda", "PrototypicalClassifier", "Scale", "compute_prototypes", "freeze", "unfreeze"]
__getattr__ = _library.otherwise("learn2learn.nn", __all__)
__path__: list[str] = []  # submodules are the library's
EPS = 1e-8


def compute_prototypes(support: Tensor, labels: Tensor) -> Tensor:
    """The mean of the support [S, ...] of each label of [S], in the order of the labels, [N, ...]."""
    _arguments.tensor("compute_prototypes", "support", support)
    _arguments.tensor("compute_prototypes", "labels", labels)
    classes, of_class = torch.unique(labels, return_inverse=True)
    return class_means(support, of_class, len(classes))


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
        if not callable(distance) and distance not in list(named):
            raise ValueError(
                f"PrototypicalClassifier: distance must be 'euclidean', 'cosine' or a function, got {distance!r}"
            )
        self.__dict__["normalize"] = normalize or distance == "cosine"
        self.distance = named[distance] if isinstance(distance, str) else distance
        self.prototypes: Tensor | None = None
        if support is not None and labels is not None:
            self.fit_(support, labels)

    def fit_(self, support: Tensor, labels: Tensor) -> Tensor:
        """Take the prototypes from support [S, D] and its labels [S]; returns them."""
        found = compute_prototypes(support, labels)
        self.prototypes = unit(found) if vars(self)["normalize"] else found
        return self.prototypes

    @staticmethod
    def euclidean_distance(prototypes: Tensor, queries: Tensor) -> Tensor:
        return -scores(queries, prototypes, "sqeuclidean")

    @staticmethod
    def cosine_distance(prototypes: Tensor, queries: Tensor) -> Tensor:
        """Of unit vectors."""
        return -queries @ prototypes.mT

    @staticmethod
    def normalize(x: Tensor, epsilon: float = EPS) -> Tensor:
        """x / (|x| + epsilon) of each row. Of the class: an object has its flag under this name."""
        norms: Tensor = x.norm(dim=1, keepdim=True)
        return x / (norms + epsilon)

    def forward(self, x: Tensor) -> Tensor:
        if self.prototypes is None:
            raise RuntimeError("PrototypicalClassifier: fit_(support, labels) must come before a query, got none")
        _arguments.tensor("PrototypicalClassifier", "x", x)
        x = unit(x) if vars(self)["normalize"] else x
        found = recorded_scores(x, self.prototypes, "sqeuclidean") if self.distance is by_square else None
        return -self.distance(self.prototypes, x) if found is None else found


unit = PrototypicalClassifier.normalize
by_square = PrototypicalClassifier.euclidean_distance


class Lambda(nn.Module):
    """lmb(...) as a module."""

    def __init__(self, lmb: Callable[..., Any]) -> None:
        super().__init__()
        if not callable(lmb):
            raise TypeError(f"Lambda: lmb must be a function, got {type(lmb).__name__}")
        self.lmb = lmb

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.lmb(*args, **kwargs)


class Flatten(nn.Module):
    """[n, ...] -> [n, -1]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1)


class Scale(nn.Module):
    """x alpha, alpha a parameter of the shape `shape` that starts at `alpha`."""

    def __init__(self, shape: int | Sequence[int] | None = None, alpha: float = 1.0) -> None:
        super().__init__()
        _arguments.number("Scale", "alpha", alpha)
        if shape is not None and not isinstance(shape, int | list | tuple):
            raise TypeError(f"Scale: shape must be a number or a sequence, got {type(shape).__name__}")
        self.alpha = nn.Parameter(torch.ones((1,) if shape is None else shape) * alpha)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.alpha


def freeze(module: Module) -> Module:
    """No parameter of `module` needs a gradient any more; in place."""
    _arguments.module("freeze", "module", module)
    for p in module.parameters():
        p.detach_().requires_grad_(False)
    return module


def unfreeze(module: Module) -> Module:
    """Every parameter of `module` needs a gradient; in place."""
    _arguments.module("unfreeze", "module", module)
    return module.requires_grad_(True)

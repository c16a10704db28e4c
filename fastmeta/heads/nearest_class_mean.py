from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import _check
from ..distance.proto_log_softmax import METRICS, proto_log_softmax
from ..distance.prototypes import prototypes
from ..types import Metric
from . import _arguments

HEAD = "NearestClassMean"


class NearestClassMean(nn.Module):
    r"""predict(x) = argmin_k d(x, c_k), c_k the mean of class k: a few-shot classifier on frozen features.

    `fit(x, y)` takes features `[S, D]` and labels `[S]`, `partial_fit` adds examples, of new classes too; `predict(x)` gives labels
    `[Q]`, `predict_proba` and `predict_log_proba` softmax_k(-d(x, c_k) / temperature) `[Q, N]`, `score(x, y)` the accuracy. As in
    scikit-learn, `classes_` are the labels in order, of integers or strings, and `means_` `[N, D]` the means. NumPy arrays in, NumPy
    arrays out; tensors in, tensors out, on their device.
    `forward(x)`: log p `[Q, N]` of a tensor, differentiable in x.
    `metric`, `temperature`: as in `proto_log_softmax`.

    Errors: ValueError before `fit`, for other numbers of features, for labels that are not one for each row. Kernels: those of
    `prototypes` and `proto_log_softmax`.

    Source: Mensink et al. 2013, Distance-based image classification; Snell et al. 2017, arXiv:1703.05175.

    ```python
    import numpy as np
    import fastmeta

    x = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32)
    y = np.array(["cat", "dog"] * 10)
    classifier = fastmeta.heads.NearestClassMean().fit(x, y)
    classifier.partial_fit(x + 5, np.array(["cow"] * 20))
    print(classifier.predict(x[:3]), classifier.score(x, y))
    ```
    """

    means_: Tensor
    counts_: Tensor

    def __init__(self, metric: Metric = "euclidean", temperature: float = 1.0) -> None:
        super().__init__()
        self.metric = _check.one_of(HEAD, "metric", metric, METRICS)
        self.temperature = _arguments.positive(HEAD, "temperature", temperature)
        self._forget()

    def _forget(self) -> None:
        self.classes_: np.ndarray[Any, Any] | None = None
        self.register_buffer("means_", torch.empty(0, 0), persistent=False)
        self.register_buffer("counts_", torch.empty(0), persistent=False)

    def fit(self, x: Any, y: Any) -> NearestClassMean:
        """The means of these examples alone."""
        self._forget()
        return self.partial_fit(x, y)

    @torch.no_grad()
    def partial_fit(self, x: Any, y: Any) -> NearestClassMean:
        """The means of these and of all examples since `fit`."""
        features, labels = self._features(x), _labels(y)
        if labels.shape != features.shape[:1]:
            raise ValueError(f"{HEAD}: y must have shape {list(features.shape[:1])}, got {list(labels.shape)}")
        if not len(labels):
            raise ValueError(f"{HEAD}: x must hold at least one example, got none")
        known, places = np.unique(labels, return_inverse=True)
        classes = known if self.classes_ is None else np.union1d(self.classes_, known)
        new = torch.as_tensor(np.searchsorted(classes, known), device=features.device)
        counts = torch.as_tensor(np.bincount(places), dtype=features.dtype, device=features.device)
        means = prototypes(features, torch.as_tensor(places.reshape(-1), device=features.device).long(), len(known))
        self._grow(classes, features)
        self.counts_[new] += counts
        self.means_[new] += (means - self.means_[new]) * (counts / self.counts_[new]).unsqueeze(-1)
        return self

    def _grow(self, classes: np.ndarray[Any, Any], like: Tensor) -> None:
        """Room for all of `classes`, zeros for the new."""
        means, counts = like.new_zeros(len(classes), like.shape[1]), like.new_zeros(len(classes))
        if self.classes_ is not None:
            old = torch.as_tensor(np.searchsorted(classes, self.classes_), device=like.device)
            means[old], counts[old] = self.means_, self.counts_
        self.classes_, self.means_, self.counts_ = classes, means, counts

    def forward(self, x: Tensor) -> Tensor:
        if self.classes_ is None:
            raise ValueError(f"{HEAD}: fit must come before, got no example yet")
        return proto_log_softmax(self._features(x), self.means_, metric=self.metric, temperature=self.temperature)

    def predict_log_proba(self, x: Any) -> Any:
        with torch.no_grad():
            return _like(x, self(x))

    def predict_proba(self, x: Any) -> Any:
        with torch.no_grad():
            return _like(x, self(x).exp())

    def predict(self, x: Any) -> Any:
        """The label of the nearest mean."""
        with torch.no_grad():
            nearest = self(x).argmax(-1)
        assert self.classes_ is not None
        found = self.classes_[nearest.cpu().numpy()]
        numbers = isinstance(x, Tensor) and found.dtype.kind in "iub"
        return torch.as_tensor(found, device=nearest.device) if numbers else found

    def score(self, x: Any, y: Any) -> float:
        """The share of `x` whose label is found."""
        found = self.predict(x)
        return float(np.mean(_labels(found) == _labels(y)))

    def _features(self, x: Any) -> Tensor:
        features = torch.as_tensor(x)
        _arguments.matrix(HEAD, x=features)
        if self.classes_ is not None:
            features = features.to(self.means_)
            if features.shape[1] != self.means_.shape[1]:
                raise ValueError(
                    f"{HEAD}: x must have {self.means_.shape[1]} features, got shape {list(features.shape)}"
                )
        return features


def _labels(y: Any) -> np.ndarray[Any, Any]:
    return y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)


def _like(x: Any, found: Tensor) -> Any:
    return found if isinstance(x, Tensor) else found.cpu().numpy()

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import _check
from .._dispatch import LOW_PRECISION
from ..distance.proto_log_softmax import METRICS, proto_log_softmax
from ..distance.prototypes import prototypes
from ..types import Metric
from . import _arguments

HEAD = "NearestClassMean"


class NearestClassMean(nn.Module):
    r"""predict(x) = argmin_k d(x, c_k), c_k the mean of class k: a few-shot classifier on frozen features.

    `fit(x, y)` takes features `[S, D]` and labels `[S]`, `partial_fit` adds examples, of new classes too; `predict(x)` gives labels
    `[Q]`, of equally near means the first class, `predict_proba` and `predict_log_proba` softmax_k(-d(x, c_k) / temperature) `[Q, N]`,
    `score(x, y)` the accuracy. As in scikit-learn, `classes_` are the labels in order, of integers or strings, `n_features_in_` is D, and
    `get_params`, `set_params` serve its `clone`, pipelines, cross-validation and searches; `means_` `[N, D]` and `counts_` `[N]` are the
    means and how many examples each has. NumPy arrays (or lists) in, NumPy arrays out; tensors in, tensors out, on their device.
    Features of integers become floating, float16 and bfloat16 float32. Keep a fitted one by pickle or torch.save: its `state_dict` is
    empty.
    `forward(x)`: log p `[Q, N]` of a tensor, differentiable in x.
    `metric`, `temperature`: as in `proto_log_softmax`.

    Errors: ValueError before `fit`, for other numbers of features, for labels that are not one for each row or of another kind than
    before, and, but in `forward`, for features that are not finite. What raises leaves the means as they were. Kernels: those of
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

    classes_: np.ndarray[Any, Any]
    means_: Tensor
    counts_: Tensor
    n_features_in_: int

    def __init__(self, metric: Metric = "euclidean", temperature: float = 1.0) -> None:
        super().__init__()
        self.set_params(metric=metric, temperature=temperature)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What it was made with."""
        return {"metric": self.metric, "temperature": self.temperature}

    def set_params(self, **params: Any) -> NearestClassMean:
        """Other values of what it was made with; the means stay."""
        for name, value in params.items():
            if name == "metric":
                self.metric = _check.one_of(HEAD, "metric", value, METRICS)
            elif name == "temperature":
                self.temperature = _arguments.positive(HEAD, "temperature", value)
            else:
                raise ValueError(f"{HEAD}: the parameters must be metric or temperature, got {name}")
        return self

    def fit(self, x: Any, y: Any) -> NearestClassMean:
        """The means of these examples alone."""
        self._learn(*self._examples(x, y, known=False))
        return self

    def partial_fit(self, x: Any, y: Any, classes: Any = None) -> NearestClassMean:
        """The means of these and of all examples since `fit`. `classes`: if given, no other label may come; a class without examples has
        no mean and is not in `classes_`."""
        features, labels = self._examples(x, y, known=self._is_fitted)
        if classes is not None and not (among := np.isin(labels, _labels(classes))).all():
            raise ValueError(f"{HEAD}: y must be among classes, got {labels[~among][0]}")
        self._learn(features, labels, *((self.classes_, self.means_, self.counts_) if self._is_fitted else ()))
        return self

    @property
    def _is_fitted(self) -> bool:
        return "classes_" in self.__dict__

    @torch.no_grad()
    def _learn(self, features: Tensor, labels: np.ndarray[Any, Any], *before: Any) -> None:
        """`before`: the classes, means and counts to go on from."""
        known, places = np.unique(labels, return_inverse=True)
        classes, device = np.union1d(before[0], known) if before else known, features.device
        means = features.new_zeros(len(classes), features.shape[1])
        counts = torch.zeros(len(classes), dtype=torch.int64, device=device)
        if before:
            old = torch.as_tensor(np.searchsorted(classes, before[0]), device=device)
            means[old], counts[old] = before[1:]
        new = torch.as_tensor(np.searchsorted(classes, known), device=device)
        more = torch.as_tensor(np.bincount(places.reshape(-1)), device=device)
        found = prototypes(features, torch.as_tensor(places.reshape(-1), device=device).long(), len(known))
        counts[new] += more
        means[new] += (found - means[new]) * (more / counts[new]).to(means).unsqueeze(-1)
        self.classes_, self.n_features_in_ = classes, features.shape[1]
        self.register_buffer("means_", means, persistent=False)
        self.register_buffer("counts_", counts, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._log_probs(self._features(x))

    def _log_probs(self, features: Tensor) -> Tensor:
        return proto_log_softmax(features, self.means_, metric=self.metric, temperature=self.temperature)

    @torch.no_grad()
    def predict_log_proba(self, x: Any) -> Any:
        return _like(x, self._log_probs(_finite(self._features(x))))

    @torch.no_grad()
    def predict_proba(self, x: Any) -> Any:
        return _like(x, self._log_probs(_finite(self._features(x))).exp())

    @torch.no_grad()
    def predict(self, x: Any) -> Any:
        """The label of the nearest mean."""
        nearest = self._log_probs(_finite(self._features(x))).argmax(-1)
        found = self.classes_[nearest.cpu().numpy()]
        numbers = isinstance(x, Tensor) and found.dtype.kind in "iub"
        return torch.as_tensor(found, device=nearest.device) if numbers else found

    def score(self, x: Any, y: Any) -> float:
        """The share of `x` whose label is found."""
        found, labels = _labels(self.predict(x)), _labels(y)
        _one_for_each(labels, len(found))
        return float(np.mean(found == labels))

    def _examples(self, x: Any, y: Any, known: bool) -> tuple[Tensor, np.ndarray[Any, Any]]:
        features, labels = _finite(self._features(x) if known else _floating(x)), _labels(y)
        _one_for_each(labels, features.shape[0])
        if not labels.size or not features.shape[1]:
            raise ValueError(f"{HEAD}: x must hold at least one example and feature, got shape {list(features.shape)}")
        if labels.dtype.kind == "f" and not (np.isfinite(labels) & (labels == np.floor(labels))).all():
            raise ValueError(f"{HEAD}: y must be whole numbers or strings, got {labels.dtype}")
        if known and _kind(labels) != _kind(self.classes_):
            raise ValueError(
                f"{HEAD}: y must be of the kind of the labels before, {self.classes_.dtype}, got {labels.dtype}"
            )
        return features, labels

    def _features(self, x: Any) -> Tensor:
        """As many as before, in the dtype and on the device of the means."""
        if not self._is_fitted:
            raise ValueError(f"{HEAD}: fit must come before, got no example yet")
        features = _floating(x)
        if features.shape[1] != self.n_features_in_:
            raise ValueError(f"{HEAD}: x must have {self.n_features_in_} features, got shape {list(features.shape)}")
        return features.to(self.means_)

    def extra_repr(self) -> str:
        return f"metric={self.metric!r}, temperature={self.temperature}"

    def __sklearn_is_fitted__(self) -> bool:
        return self._is_fitted

    def __sklearn_tags__(self) -> Any:
        """Only scikit-learn asks for it."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags("classifier", TargetTags(required=True), classifier_tags=ClassifierTags(), input_tags=InputTags())


def _kind(labels: np.ndarray[Any, Any]) -> str:
    return "numbers" if labels.dtype.kind in "iubf" else "strings"


def _floating(x: Any) -> Tensor:
    """[n, D], in float32 or better."""
    if not isinstance(x, Tensor):
        array = np.asarray(x)
        if array.dtype.kind not in "fiubO":
            raise ValueError(f"{HEAD}: x must be real numbers, got {array.dtype}")
        if array.dtype.kind == "O" and not array.ndim:  # what a sparse matrix is to NumPy
            raise TypeError(
                f"{HEAD}: x must be a dense array, not a sparse one or another object, got {type(x).__name__}"
            )
        wide = array.dtype.kind != "f" or array.dtype.itemsize > 8
        dtype = np.dtype(np.float64) if wide else array.dtype.newbyteorder("=")
        x = torch.from_numpy(np.require(array, dtype, ["C", "W"]))  # else torch warns, or has no such strides
    if not x.is_floating_point() and not x.is_complex():
        x = x.to(torch.get_default_dtype())
    _arguments.matrix(HEAD, x=x)
    found: Tensor = x.float() if x.dtype in LOW_PRECISION else x
    return found


def _finite(x: Tensor) -> Tensor:
    if not bool(x.isfinite().all()):
        kind = "NaN" if bool(x.isnan().any()) else "inf"
        raise ValueError(f"{HEAD}: x must be finite, got {kind}")
    return x


def _one_for_each(labels: np.ndarray[Any, Any], rows: int) -> None:
    if labels.shape != (rows,):
        raise ValueError(f"{HEAD}: y must have shape {[rows]}, got {list(labels.shape)}")


def _labels(y: Any) -> np.ndarray[Any, Any]:
    return y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)


def _like(x: Any, found: Tensor) -> Any:
    return found if isinstance(x, Tensor) else found.cpu().numpy()

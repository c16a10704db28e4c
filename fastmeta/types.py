"""The words and rates that the public functions take, for annotations of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from torch import Tensor

Metric: TypeAlias = Literal["euclidean", "sqeuclidean", "cosine"]
Reduction: TypeAlias = Literal["mean", "sum", "none"]
Activation: TypeAlias = Literal["relu", "tanh", "gelu", "sigmoid", "identity"]
Loss: TypeAlias = Literal["cross_entropy", "mse"]
Curvature: TypeAlias = Literal["hessian", "ggn"]
# A number or 0-dim tensor for all parameters, a tensor [steps], or one rate for each parameter in their structure.
Rate: TypeAlias = float | Tensor | Sequence[float | Tensor | None] | Mapping[str, float | Tensor]

"""The words and rates that the public functions take, for annotations of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

Metric: TypeAlias = Literal["euclidean", "sqeuclidean", "cosine"]
Reduction: TypeAlias = Literal["mean", "sum", "none"]
Activation: TypeAlias = Literal["relu", "tanh", "gelu", "sigmoid", "identity"]
Loss: TypeAlias = Literal["cross_entropy", "mse"]
Curvature: TypeAlias = Literal["hessian", "ggn"]
# A number or 0-dim tensor for all parameters, a tensor [steps], or one rate for each parameter in their structure.
Rate: TypeAlias = float | Tensor | Sequence[float | Tensor | None] | Mapping[str, float | Tensor]


class ConvBlock(NamedTuple):
    """A block of a convolutional network, as the conv ops take it: a convolution by 3 x 3 kernels, a norm, ReLU, max-pool.

    `stride`, `padding` (with zeros): of the convolution, in both directions. `norm`: "batch", the mean and the variance of a
    channel over the task's own batch; a number of groups, those of an image over a group of neighbouring channels (1: layer norm;
    the number of channels: instance norm); None. `eps`: what the norm adds to the variance. `relu`: whether. `pool`: the side of
    the max-pool's windows, which do not overlap; 1: none. What no whole window has is left out.
    """

    stride: int = 1
    padding: int = 1
    norm: str | int | None = "batch"
    eps: float = 1e-5
    relu: bool = True
    pool: int = 2

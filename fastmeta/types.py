"""The words and rates that the public functions take, and what draws tasks, for annotations of your own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from .data import Episodes, TaskGenerator

__all__ = ["Activation", "Backend", "ConvBlock", "Curvature", "Draw", "Loss", "Metric", "Rate", "Reduction", "Sampler"]

Metric: TypeAlias = Literal["euclidean", "sqeuclidean", "cosine"]
Reduction: TypeAlias = Literal["mean", "sum", "none"]
Activation: TypeAlias = Literal["relu", "tanh", "gelu", "sigmoid", "identity", "silu", "leaky_relu", "sine"]
Loss: TypeAlias = Literal["cross_entropy", "mse"]
Curvature: TypeAlias = Literal["hessian", "ggn"]
Backend: TypeAlias = Literal["auto", "triton", "ext", "reference"]
# A number or 0-dim tensor for all parameters, a tensor [steps], or one rate for each parameter in their structure.
Rate: TypeAlias = float | Tensor | Sequence[float | Tensor | None] | Mapping[str, float | Tensor]
# So many tasks, whose random numbers come from the generator.
Draw: TypeAlias = Callable[[int, "TaskGenerator"], "Episodes"]


class Sampler(Protocol):
    """Meta-batches without end, and where the sequence of tasks is: what `fastmeta.data.TaskSampler` gives."""

    def __iter__(self) -> Iterator[Episodes]: ...
    def __next__(self) -> Episodes: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class ConvBlock(NamedTuple):
    """A block of a convolutional network, as the conv ops take it: a convolution, a norm, ReLU, max-pool.

    `stride`, `padding` (with zeros): of the convolution, in both directions. `norm`: "batch", the mean and the variance of a
    channel over the task's own batch; a number of groups, those of an image over a group of neighbouring channels (1: layer norm;
    the number of channels: instance norm); None. `eps`: what the norm adds to the variance. `relu`: whether. `pool`: the side of
    the max-pool's windows, which do not overlap; 1: none. What no whole window has is left out. "mean", in the last block before a linear
    layer: the mean of each channel over all pixels. `kernel`: the side of the kernels; with
    that of the images, and padding 0, the block is a linear layer.

    In an encoder, `conv_forward` without a linear layer, also: `slope`, from 0 to below 1: what relu leaves of a negative number,
    slope times it (leaky ReLU). Its kernels are 3, or 1 with padding 0. `skip`: 0; or k, from 2 to l: block l
    reads what block l - k reads, and what block l - 1 hands on, which has neither relu nor pool, is added to its normed numbers
    before its relu. So three blocks and one with `kernel=1, padding=0, skip=3` are a residual block, the last its shortcut.
    """

    stride: int = 1
    padding: int = 1
    norm: str | int | None = "batch"
    eps: float = 1e-5
    relu: bool = True
    pool: int | str = 2
    slope: float = 0.0
    kernel: int = 3
    skip: int = 0

"""The words and rates that the public functions take, and what draws tasks, for annotations of your own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from torch import Tensor

if TYPE_CHECKING:
    from .data import Episodes, TaskGenerator

__all__ = ["Activation", "Backend", "Curvature", "Draw", "Loss", "Metric", "Rate", "Reduction", "Sampler"]

Metric: TypeAlias = Literal["euclidean", "sqeuclidean", "cosine"]
Reduction: TypeAlias = Literal["mean", "sum", "none"]
Activation: TypeAlias = Literal["relu", "tanh", "gelu", "sigmoid", "identity"]
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

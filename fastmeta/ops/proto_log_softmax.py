from __future__ import annotations

from torch import Tensor

from .. import _check
from .._dispatch import call, direct
from ..types import Metric

METRICS = ("euclidean", "sqeuclidean", "cosine")
CORES = (2, 2, None)


def proto_log_softmax(
    query: Tensor, prototypes: Tensor, *, metric: Metric = "euclidean", temperature: float | Tensor = 1.0
) -> Tensor:
    r"""log p(y = k | x) = log_softmax_k(-d(x, c_k) / temperature).

    Shapes: query `[..., Q, D]`, prototypes `[..., N, D]` -> `[..., Q, N]`. Either may lack the batch dimensions and is then
    shared by all tasks. `metric`: "euclidean", d = |x - c|; "sqeuclidean", d = |x - c|^2 (the paper's and learn2learn's;
    easyfsl's is the former); or "cosine", d = 1 - x . c / (|x| |c|), 1 to a zero vector. `temperature`: positive and finite, a
    float or a tensor with one element.

    Differentiable in query, prototypes and temperature, to any order; the gradient of the euclidean distance at coincident
    points is 0, and that of the cosine at a zero vector. The first two metrics come from differences: exact 0 at coincident
    points, and a common offset of all features does not cost digits. dtype: float32, float64, float16 or bfloat16 in and out,
    sums in float32 or better; float32 under autocast.

    Errors: TypeError for dtypes and what is not a tensor, ValueError for shapes, devices and values.

    Kernels: Triton (CUDA), native CPU. Source: Snell et al. 2017, arXiv:1703.05175, eq. 2.

    ```python
    import torch
    import fastmeta

    query, centres = torch.randn(32, 75, 64), torch.randn(32, 5, 64)
    log_p = fastmeta.proto_log_softmax(query, centres, metric="cosine", temperature=0.1)  # [32, 75, 5]
    predicted = log_p.argmax(-1)
    ```
    """
    op = "proto_log_softmax"
    metric = _check.one_of(op, "metric", metric, METRICS)
    temperature = _check.scalar(op, "temperature", temperature)
    found = direct(op, (query, prototypes, temperature), (metric,), CORES)
    if found is not None:
        return found[0]
    lead = check_distance(op, query, prototypes, temperature)
    args = (_check.fold(query, lead, 2), _check.fold(prototypes, lead, 2, shared=True), temperature)
    (out,) = call(op, args, (metric,), CORES)
    return _check.unfold(out, lead)


def check_distance(
    op: str, query: Tensor, others: Tensor, temperature: float | Tensor, name: str = "prototypes"
) -> list[int]:
    """The batch dimensions of the query and of what it is compared with."""
    both = {"query": query, name: others}
    _check.floating(op, **both)
    _check.at_least(op, 2, **both)
    lead = _check.leads(op, {"query": 2, name: 2}, **both)
    if query.shape[-1] != others.shape[-1]:
        raise ValueError(
            f"{op}: query and {name} must have the same number of features, got shapes {_check.shape(query)} and "
            f"{_check.shape(others)}"
        )
    if others.shape[-2] == 0:
        least = "class" if name == "prototypes" else "example"
        raise ValueError(f"{op}: {name} must hold at least one {least}, got shape {_check.shape(others)}")
    _check.positive(op, "temperature", temperature, query)
    return lead

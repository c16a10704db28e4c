from __future__ import annotations

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..types import Metric

METRICS = ("euclidean", "sqeuclidean", "cosine")
CORES = (2, 2, None)


def proto_log_softmax(
    query: Tensor, prototypes: Tensor, *, metric: Metric = "euclidean", temperature: float | Tensor = 1.0
) -> Tensor:
    r"""log p(y = k | x) = log_softmax_k(-d(x, c_k) / temperature).

    Shapes: query `[..., Q, D]`, prototypes `[..., N, D]` -> `[..., Q, N]`. Either may lack the batch dimensions; all tasks then
    share it.
    `metric`: "euclidean", d = |x - c|, as in easyfsl; "sqeuclidean", d = |x - c|^2, as in the paper and learn2learn; or
    "cosine", d = 1 - x . c / (|x| |c|), which is 1 to a zero vector.
    `temperature`: positive and finite, a float or a tensor with one element.

    Differentiable in query, prototypes and temperature, to any order. The gradient of the euclidean distance at coincident
    points is 0, and so is that of the cosine at a zero vector. The first two metrics are computed from differences, or
    from products where these lose nothing: they are exactly 0 at coincident points, and an offset that all features share costs
    no digits. dtypes: float32, float64, float16 and bfloat16, in and out; sums in float32 or better; float32 under autocast.

    Errors: TypeError for a wrong dtype or what is not a tensor; ValueError for wrong shapes, devices and values.

    Kernels: Triton (CUDA), native CPU. Source: Snell et al. 2017, arXiv:1703.05175, eq. 2.

    ```python
    import torch
    import fastmeta

    query, centres = torch.randn(32, 75, 64), torch.randn(32, 5, 64)
    log_p = fastmeta.proto_log_softmax(query, centres, temperature=2.0)
    predicted = log_p.argmax(-1)  # of log_p [32, 75, 5]
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

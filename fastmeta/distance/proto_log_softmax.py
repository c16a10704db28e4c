from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from .. import _check
from .._autograd import is_autocast, without_autocast
from .._dispatch import LOW_PRECISION
from .._route import call, direct
from ..types import Metric

METRICS = ("euclidean", "sqeuclidean", "cosine")
CORES = (2, 2, None)


def proto_log_softmax(
    query: Tensor,
    prototypes: Tensor,
    *,
    metric: Metric = "euclidean",
    scale_diag: Tensor | None = None,
    scale_tril: Tensor | None = None,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    r"""log p(y = k | x) = log_softmax_k(-d(x, c_k) / temperature).

    Shapes: query `[..., Q, D]`, prototypes `[..., N, D]` -> `[..., Q, N]`. Either may lack the batch dimensions; all tasks then
    share it.
    `metric`: "euclidean", d = |x - c|, as in easyfsl; "sqeuclidean", d = |x - c|^2, as in the paper and learn2learn; or
    "cosine", d = 1 - x . c / (|x| |c|), which is 1 to a zero vector.
    `scale_diag` `[..., D]` or `scale_tril` `[..., D, D]`: a learned metric, in which both sides are compared as x * scale_diag or
    x @ L, L the lower triangle of scale_tril, so that "sqeuclidean" is (x - c)' L L' (x - c); of each task or of all. What is above the
    diagonal is not read. Both sides are transformed in PyTorch, in float32 or better, then rounded to their dtype.
    `temperature`: positive and finite, a float or a tensor with one element.

    Differentiable in query, prototypes, temperature and scale, to any order. The gradient of the euclidean distance at coincident
    points is 0, and so is that of the cosine at a zero vector. The first two metrics are computed from differences, or
    from products where these lose nothing: they are exactly 0 at coincident points, and an offset that all features share costs
    no digits; with scale_tril coincident points are 0 but for rounding. dtypes: float32, float64, float16 and bfloat16, in and out; sums
    in float32 or better; float32 under autocast.

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
    if scale_diag is not None or scale_tril is not None:
        query, prototypes = in_metric(op, metric, query, prototypes, scale_diag, scale_tril)
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


def in_metric(
    op: str,
    metric: str,
    query: Tensor,
    others: Tensor,
    scale_diag: Tensor | None,
    scale_tril: Tensor | None,
    name: str = "prototypes",
) -> tuple[Tensor, Tensor]:
    """Both sides, [..., Q, D] and [..., N, D], as features whose distances are those of a learned metric: x * scale_diag, or
    x @ tril(scale_tril)."""
    key, scale, rank = ("scale_diag", scale_diag, 1) if scale_tril is None else ("scale_tril", scale_tril, 2)
    if scale_diag is not None and scale_tril is not None:
        raise ValueError(f"{op}: scale_diag and scale_tril must not come together, got both")
    check_distance(op, query, others, 1.0, name)
    given = {"query": query, name: others, key: scale}
    _check.floating(op, **given)
    assert scale is not None
    expected = [query.shape[-1]] * rank
    if list(scale.shape[-rank:]) != expected:
        raise ValueError(f"{op}: {key} must have shape [...{f', {query.shape[-1]}' * rank}], got {_check.shape(scale)}")
    _check.leads(op, {"query": 2, name: 2, key: rank}, query=query, **{name: others, key: scale})
    with without_autocast(query):
        wide = reduce(torch.promote_types, (x.dtype for x in (query, others, scale)))
        wide = torch.float32 if wide in LOW_PRECISION else wide
        q, c, by = (x.to(wide) for x in (query, others, scale))
        if rank == 1:
            q, c = q * by.unsqueeze(-2), c * by.unsqueeze(-2)
        else:
            if metric != "cosine":  # an offset of all features would cost digits in the products
                centre = c.mean(-2, keepdim=True).detach()
                q, c = q - centre, c - centre
            q, c = q @ by.tril(), c @ by.tril()
    return (q, c) if is_autocast(query.device.type) else (q.to(query.dtype), c.to(query.dtype))

from __future__ import annotations

import torch
from torch import Tensor

from .. import _check
from .._autograd import is_autocast
from .._dispatch import LOW_PRECISION
from .._route import direct
from ..types import Metric
from .proto_log_softmax import METRICS, check_distance
from .proto_loss import proto_loss

CORES = (2, 2, None)


def symmetric_loss(
    query: Tensor, keys: Tensor, *, metric: Metric = "euclidean", temperature: float | Tensor = 1.0
) -> Tensor:
    r"""loss = -mean_i (log softmax_j(z_ij)[i] + log softmax_j(z_ji)[i]) / 2, z_ij = -d(q_i, k_j) / temperature.

    Row i of the queries belongs to row i of the keys: half of `proto_loss` of queries among keys and half of keys among queries.

    Shapes: query and keys `[..., B, D]` -> `[...]`.

    Differentiable in query, keys and temperature, to any order. Metrics, temperature and dtypes are those of `proto_log_softmax`; float16
    and bfloat16 are computed in float32.

    Errors: as in `proto_log_softmax`; ValueError for keys of another shape than the query's.

    Kernels: native CPU, three products of `[B, B, D]` forward and backward where two calls of `proto_loss` have six, with a `[B, B]` matrix
    inside; above B = 8 D, where this would be larger than four times the inputs, four products without. Elsewhere, under autocast and
    transforms, these two calls.

    Source: Radford et al. 2021, arXiv:2103.00020, figure 3.

    ```python
    import torch
    import fastmeta

    images = torch.randn(256, 64, requires_grad=True)
    texts = torch.randn(256, 64, requires_grad=True)
    loss = fastmeta.symmetric_loss(
        images, texts, metric="cosine", temperature=0.07
    )
    loss.backward()
    ```
    """
    op = "symmetric_loss"
    metric = _check.one_of(op, "metric", metric, METRICS)
    temperature = _check.scalar(op, "temperature", temperature)
    found = direct(op, (query, keys, temperature), (metric,), CORES)
    if found is not None:
        return found[0]
    lead = check_distance(op, query, keys, temperature, "keys")
    if query.shape != keys.shape:
        raise ValueError(f"{op}: keys must have the shape of query, {_check.shape(query)}, got {_check.shape(keys)}")
    dtype, low = query.dtype, query.dtype in LOW_PRECISION
    q, k = (x.float() if low else x for x in (query, keys))
    of_both = temperature.to(q.dtype) if isinstance(temperature, Tensor) else temperature
    found = direct(op, (_check.fold(q, lead, 2), _check.fold(k, lead, 2), of_both), (metric,), CORES)
    if found is not None:
        return _check.unfold(found[0], lead).to(dtype)
    own = torch.arange(query.shape[-2], device=query.device).expand(query.shape[:-1])
    there, back = (proto_loss(x, y, own, metric=metric, temperature=of_both) for x, y in ((q, k), (k, q)))
    loss = (there + back) / 2
    return loss if is_autocast(query.device.type) else loss.to(dtype)

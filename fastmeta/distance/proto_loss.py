from __future__ import annotations

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..types import Metric, Reduction
from .proto_log_softmax import METRICS, check_distance

REDUCTIONS = ("mean", "sum", "none")
CORES = (2, 2, 1, None)


def proto_loss(
    query: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    *,
    metric: Metric = "euclidean",
    temperature: float | Tensor = 1.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""loss = -mean_q log p(y_q | x_q), p as in `proto_log_softmax`, without the `[Q, N]` matrix.

    Shapes: query `[..., Q, D]`, prototypes `[..., N, D]`, targets `[..., Q]` int64 -> `[...]`, or `[..., Q]` for reduction
    "none". "mean" and "sum" are over the task's targets that are not `ignore_index`; a task that has none gets 0.

    Differentiable in query, prototypes and temperature, to any order. Metrics, temperature, dtypes and numerics are those of
    `proto_log_softmax`.

    Errors: as in `proto_log_softmax`; ValueError for a target out of range. On CUDA targets are not looked at, because that
    would wait for the device: there a target out of range makes its loss NaN.

    Kernels: Triton (CUDA), native CPU. Source: Snell et al. 2017, arXiv:1703.05175, algorithm 1.

    ```python
    import torch
    import fastmeta

    query = torch.randn(32, 75, 64, requires_grad=True)
    centres, targets = torch.randn(32, 5, 64), torch.randint(0, 5, (32, 75))
    fastmeta.proto_loss(query, centres, targets).mean().backward()
    ```
    """
    op = "proto_loss"
    ignore_index = _check.integer(op, "ignore_index", ignore_index, -(2**63), 2**63 - 1)
    metric = _check.one_of(op, "metric", metric, METRICS)
    temperature = _check.scalar(op, "temperature", temperature)
    static = (metric, ignore_index, _check.one_of(op, "reduction", reduction, REDUCTIONS))
    found = direct(op, (query, prototypes, targets, temperature), static, CORES)
    if found is not None:
        _check.refuse_label_out_of_range(op, "targets", targets, prototypes.shape[-2], ignore_index)
        return found[0]
    lead = check_distance(op, query, prototypes, temperature)
    if lead and query.ndim == 2:
        query = query.expand(*lead, *query.shape)
    _check.labels(op, "targets", targets, query.shape[:-1], query.device)
    _check.label_range(op, "targets", targets, prototypes.shape[-2], ignore_index)
    args = (
        _check.fold(query, lead, 2),
        _check.fold(prototypes, lead, 2, shared=True),
        _check.fold(targets, lead, 1),
        temperature,
    )
    (out,) = call(op, args, static, CORES)
    return _check.unfold(out, lead)

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..types import Metric, Reduction
from .proto_log_softmax import METRICS, check_distance, in_metric

REDUCTIONS = ("mean", "sum", "none")
CORES = (2, 2, 1, None, 1, 1)
NONE = -1  # of `exclude`: no prototype


def proto_loss(
    query: Tensor,
    prototypes: Tensor,
    targets: Tensor,
    *,
    metric: Metric = "euclidean",
    scale_diag: Tensor | None = None,
    scale_tril: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    exclude: Tensor | None = None,
    margin: float = 0.0,
    target_distance: Tensor | None = None,
) -> Tensor:
    r"""loss = -mean_q log p(y_q | x_q), p as in `proto_log_softmax`, without the `[Q, N]` matrix.

    Shapes: query `[..., Q, D]`, prototypes `[..., N, D]`, targets `[..., Q]` int64 -> `[...]`, or `[..., Q]` for reduction
    "none". "mean" and "sum" are over the task's targets that are not `ignore_index`; a task that has none gets 0.
    `exclude`: `[..., Q]` int64, for each query one prototype that does not count, such as the query itself, or -1.
    `margin`: what is taken off the logit of the target, -d(x_q, c_y) / temperature - margin.
    `target_distance`: `[..., Q]`, what stands in place of d(x_q, c_y): the distance to a prototype that is the query's alone, or one
    with a margin on the angle.

    Differentiable in all tensors of floating point, to any order. Metrics, `scale_diag`, `scale_tril`, temperature, dtypes and numerics are
    those of `proto_log_softmax`.

    Errors: as in `proto_log_softmax`; ValueError for a target or an excluded prototype out of range, a target that is excluded, a
    margin that is not finite. On CUDA targets are not looked at, because that would wait for the device: there a target that is
    out of range or excluded makes its loss NaN.

    Kernels: Triton (CUDA), native CPU. Source: Snell et al. 2017, arXiv:1703.05175, algorithm 1; margin: Wang et al. 2018,
    arXiv:1801.09414.

    ```python
    import torch
    import fastmeta

    query = torch.randn(32, 75, 64, requires_grad=True)
    centres, targets = torch.randn(32, 5, 64), torch.randint(0, 5, (32, 75))
    fastmeta.proto_loss(query, centres, targets).mean().backward()

    z = torch.nn.functional.normalize(torch.randn(256, 64), dim=-1)
    pair, own = torch.arange(256).roll(128), torch.arange(256)
    nt_xent = fastmeta.proto_loss(
        z, z, pair, exclude=own, metric="cosine", temperature=0.1
    )
    ```
    """
    op = "proto_loss"
    ignore_index = _check.integer(op, "ignore_index", ignore_index, -(2**63), 2**63 - 1)
    metric = _check.one_of(op, "metric", metric, METRICS)
    temperature = _check.scalar(op, "temperature", temperature)
    if type(margin) is not float or not abs(margin) < _check.INFINITY:
        margin = _finite(op, margin)
    static = (metric, ignore_index, _check.one_of(op, "reduction", reduction, REDUCTIONS), margin)
    if scale_diag is not None or scale_tril is not None:
        query, prototypes = in_metric(op, metric, query, prototypes, scale_diag, scale_tril)
    found = direct(op, (query, prototypes, targets, temperature, exclude, target_distance), static, CORES)
    if found is not None:
        _check.refuse_label_out_of_range(op, "targets", targets, prototypes.shape[-2], ignore_index)
        if exclude is not None:
            _refuse_excluded(op, exclude, targets, prototypes.shape[-2], ignore_index)
        return found[0]
    lead = check_distance(op, query, prototypes, temperature)
    if lead and query.ndim == 2:
        query = query.expand(*lead, *query.shape)
    _check.labels(op, "targets", targets, query.shape[:-1], query.device)
    _check.label_range(op, "targets", targets, prototypes.shape[-2], ignore_index)
    if exclude is not None:
        _check.labels(op, "exclude", exclude, query.shape[:-1], query.device)
        if _check.visible(exclude) and _check.visible(targets):
            _refuse_excluded(op, exclude, targets, prototypes.shape[-2], ignore_index)
    if target_distance is not None:
        _check.floating(op, query=query, target_distance=target_distance)
        if target_distance.shape != query.shape[:-1]:
            expected, got = _check.shape(query)[:-1], _check.shape(target_distance)
            raise ValueError(f"{op}: target_distance must have shape {expected}, got {got}")
    args = (
        _check.fold(query, lead, 2),
        _check.fold(prototypes, lead, 2, shared=True),
        _check.fold(targets, lead, 1),
        temperature,
        None if exclude is None else _check.fold(exclude, lead, 1),
        None if target_distance is None else _check.fold(target_distance, lead, 1),
    )
    (out,) = call(op, args, static, CORES)
    return _check.unfold(out, lead)


def _finite(op: str, margin: Any) -> float:
    found = _check.number(op, "margin", margin)
    if not abs(found) < _check.INFINITY:
        raise ValueError(f"{op}: margin must be finite, got {found}")
    return found


def _refuse_excluded(op: str, exclude: Tensor, targets: Tensor, classes: int, ignore_index: int) -> None:
    """ValueError where `exclude` of CPU tensors is out of range, or is a target that counts."""
    if not exclude.is_cpu:
        return
    wrong = _check.label_out_of_range(exclude, classes, NONE)
    if wrong is not None:
        raise ValueError(f"{op}: exclude must be in [0, {classes}) or {NONE}, got {wrong}")
    clash = (exclude == targets) & (targets != ignore_index)
    if bool(clash.any()):
        raise ValueError(f"{op}: exclude must not be the target, got {int(targets[clash][0])} for both")

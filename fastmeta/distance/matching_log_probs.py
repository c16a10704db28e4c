from __future__ import annotations

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..types import Metric
from .proto_log_softmax import METRICS, check_distance, in_metric

CORES = (2, 2, 1, None)


def matching_log_probs(
    query: Tensor,
    support: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    metric: Metric = "cosine",
    scale_diag: Tensor | None = None,
    scale_tril: Tensor | None = None,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    r"""log p(y = k | x) = log sum_{i: y_i = k} a_i, a = softmax_i(-d(x, x_i) / temperature): attention over the support.

    Shapes: query `[..., Q, D]`, support `[..., S, D]`, labels `[..., S]` int64 in `[0, num_classes)` -> `[..., Q, num_classes]`.
    Query or support (with its labels) may lack the batch dimensions; all tasks then share it. Metrics, `scale_diag`, `scale_tril`,
    temperature, dtypes and numerics are those of `proto_log_softmax`. With "cosine", the paper's metric,
    a_i = softmax_i(cos(x, x_i) / temperature).

    Differentiable in query, support, temperature and scale, to any order.

    Errors: as in `proto_log_softmax`; ValueError for a label out of range, a class without an example, or more classes than
    examples. On CUDA labels are not looked at, because that would wait for the device: there a label out of range makes its
    task NaN, and log p of an empty class is -inf.

    Kernels: Triton (CUDA), native CPU. Source: Vinyals et al. 2016, arXiv:1606.04080, eq. 1 and 2.

    ```python
    import torch
    import fastmeta

    query, support = torch.randn(32, 75, 64), torch.randn(32, 25, 64)
    labels = torch.arange(25).remainder(5).expand(32, 25)
    log_p = fastmeta.matching_log_probs(query, support, labels, 5)
    print(log_p.shape)  # [32, 75, 5]
    ```
    """
    op = "matching_log_probs"
    num_classes = _check.integer(op, "num_classes", num_classes, 1, _check.MOST_CLASSES)
    metric = _check.one_of(op, "metric", metric, METRICS)
    temperature = _check.scalar(op, "temperature", temperature)
    static = (num_classes, metric)
    if scale_diag is not None or scale_tril is not None:
        query, support = in_metric(op, metric, query, support, scale_diag, scale_tril, "support")
    found = direct(op, (query, support, labels, temperature), static, CORES)
    if found is not None:
        _check.refuse_label_out_of_range(op, "labels", labels, num_classes)
        _check.refuse_empty_class(op, labels, num_classes)
        return found[0]
    lead = check_distance(op, query, support, temperature, "support")
    _check.labels(op, "labels", labels, support.shape[:-1], support.device)
    _check.label_range(op, "labels", labels, num_classes)
    _check.every_class(op, labels, num_classes)
    args = (
        _check.fold(query, lead, 2),
        _check.fold(support, lead, 2, shared=True),
        _check.fold(labels, lead, 1, shared=True),
        temperature,
    )
    (out,) = call(op, args, static, CORES)
    return _check.unfold(out, lead)

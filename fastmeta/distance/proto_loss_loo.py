from __future__ import annotations

import torch
from torch import Tensor

from .. import _check
from .._autograd import is_autocast, without_autocast
from .._dispatch import LOW_PRECISION
from .._route import direct
from ..reference.proto_loss_loo import distances_to_others, of_rows
from ..types import Metric, Reduction
from .proto_log_softmax import METRICS
from .proto_loss import REDUCTIONS, proto_loss
from .prototypes import prototypes

CORES = (2, 1, None)


def proto_loss_loo(
    embeddings: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    metric: Metric = "euclidean",
    temperature: float | Tensor = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""loss = -mean_i log softmax_k(-d(x_i, c_ik) / temperature)[y_i], c_ik = mean of the examples of class k, without example i.

    Every example is a query, against the prototypes that all others make: only that of its own class differs from the mean of the
    class, c_iy = c_y + (c_y - x_i) / (n_y - 1), so that one logit of each query is put right (`target_distance` in `proto_loss`).

    Shapes: embeddings `[..., S, D]`, labels `[..., S]` int64 in `[0, num_classes)` -> `[...]`, or `[..., S]` for reduction "none".

    Differentiable in embeddings and temperature, to any order. Metrics, temperature and dtypes are those of `proto_log_softmax`; float16
    and bfloat16 are computed in float32.

    Errors: as in `prototypes` and `proto_loss`; ValueError for a class with one example, which has no prototype without it. On CUDA
    labels are not looked at: there such a class makes its task NaN.

    Kernels: native CPU; elsewhere, under autocast and transforms, those of `prototypes` and `proto_loss`.

    Source: Wan et al. 2018, arXiv:1710.10467, eq. 8 and 9.

    ```python
    import torch
    import fastmeta

    voices = torch.randn(64, 10, 256, requires_grad=True)  # 64 speakers
    speakers = torch.arange(64).repeat_interleave(10)
    loss = fastmeta.proto_loss_loo(
        voices.flatten(0, 1), speakers, 64, metric="cosine", temperature=0.1
    )
    loss.backward()
    ```
    """
    op = "proto_loss_loo"
    num_classes = _check.integer(op, "num_classes", num_classes, 1, _check.MOST_CLASSES)
    metric = _check.one_of(op, "metric", metric, METRICS)
    reduction = _check.one_of(op, "reduction", reduction, REDUCTIONS)
    temperature = _check.scalar(op, "temperature", temperature)
    static = (num_classes, metric, reduction)
    found = direct(op, (embeddings, labels, temperature), static, CORES)  # which declines wrong labels
    if found is not None:
        return found[0]
    _check.floating(op, embeddings=embeddings)
    _check.at_least(op, 2, embeddings=embeddings)
    _check.positive(op, "temperature", temperature, embeddings)
    _check.labels(op, "labels", labels, embeddings.shape[:-1], embeddings.device)
    _check.label_range(op, "labels", labels, num_classes)
    _check.every_class(op, labels, num_classes)
    counts = torch.zeros((*labels.shape[:-1], num_classes), dtype=torch.int64, device=labels.device)
    counts = counts.scatter_add(-1, labels.clamp(0, num_classes - 1), torch.ones_like(labels))
    if _check.visible(labels) and bool((counts == 1).any()):
        alone = (counts == 1).nonzero()[0, -1]
        raise ValueError(f"{op}: every class must have two examples, got one of class {alone}")
    dtype = embeddings.dtype
    x = embeddings.float() if dtype in LOW_PRECISION else embeddings
    temperature = temperature.to(x.dtype) if isinstance(temperature, Tensor) else temperature
    lead = list(x.shape[:-2])
    found = direct(op, (_check.fold(x, lead, 2), _check.fold(labels, lead, 1), temperature), static, CORES)
    if found is not None:
        return _check.unfold(found[0], lead).to(dtype)
    centres = prototypes(x, labels, num_classes)
    with without_autocast(x):
        apart = distances_to_others(x, centres, labels, counts, metric)
    loss = proto_loss(
        x, centres, labels, metric=metric, temperature=temperature, reduction=reduction, target_distance=apart
    )
    return loss if is_autocast(embeddings.device.type) else loss.to(dtype)


def row_distances(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """d(x_i, y_i), [..., S, D], [..., S, D] -> [..., S]; float32 under autocast."""
    with without_autocast(x):
        wide = [t.float() if t.dtype in LOW_PRECISION else t for t in (x, y)]
        found = of_rows(wide[0], wide[1], metric)
    return found if is_autocast(x.device.type) else found.to(x.dtype)

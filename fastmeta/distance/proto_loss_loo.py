from __future__ import annotations

import torch
from torch import Tensor

from .. import _check
from .._autograd import is_autocast, without_autocast
from .._dispatch import LOW_PRECISION
from ..reference.proto_log_softmax import distances
from ..types import Metric, Reduction
from .proto_log_softmax import METRICS
from .proto_loss import REDUCTIONS, proto_loss
from .prototypes import prototypes


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

    Kernels: those of `prototypes` and `proto_loss`. Source: Wan et al. 2018, arXiv:1710.10467, eq. 8 and 9.

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
    _check.one_of(op, "metric", metric, METRICS)
    _check.one_of(op, "reduction", reduction, REDUCTIONS)
    temperature = _check.scalar(op, "temperature", temperature)
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
    centres = prototypes(x, labels, num_classes)
    apart = _distance_to_others(x, centres, labels, counts, metric)
    loss = proto_loss(
        x, centres, labels, metric=metric, temperature=temperature, reduction=reduction, target_distance=apart
    )
    return loss if is_autocast(embeddings.device.type) else loss.to(dtype)


def _distance_to_others(x: Tensor, centres: Tensor, labels: Tensor, counts: Tensor, metric: str) -> Tensor:
    """[..., S]: d(x_i, c_iy), where x_i - c_iy = (x_i - c_y) n / (n - 1)."""
    places = labels.clamp(0, counts.shape[-1] - 1)
    own = centres.gather(-2, places.unsqueeze(-1).expand_as(x))  # [..., S, D]
    others = (counts.gather(-1, places) - 1).to(x.dtype)
    if metric == "cosine":
        return row_distances(x, own + (own - x) / others.unsqueeze(-1), metric)
    factor = (others + 1) / others
    return row_distances(x, own, metric) * (factor if metric == "euclidean" else factor.square())


def row_distances(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """d(x_i, y_i), [..., S, D], [..., S, D] -> [..., S]; float32 under autocast."""
    with without_autocast(x):
        wide = [t.unsqueeze(-2).float() if t.dtype in LOW_PRECISION else t.unsqueeze(-2) for t in (x, y)]
        found = distances(wide[0], wide[1], metric)[..., 0, 0]
    return found if is_autocast(x.device.type) else found.to(x.dtype)

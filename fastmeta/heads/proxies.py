from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import _check
from ..distance.proto_loss import proto_loss
from ..distance.proto_loss_loo import row_distances
from . import _arguments
from .supcon import IGNORED, classmates


class NCA(nn.Module):
    r"""loss = -mean_i log sum_{j: y_j = y_i, j != i} p_ij, p_ij = softmax_{j != i}(-|x_i - x_j|^2 / temperature).

    Shapes: embeddings `[B, D]`, labels `[B]` int64 of any values -> `[]`. Embeddings are taken as they are. An example that is alone
    in its class is left out. No `[B, B]` matrix is made where a kernel runs.

    Errors: TypeError and ValueError, in the head's name. Kernels: native CPU; elsewhere the reference of `proto_loss`.

    Source: Goldberger et al. 2005, Neighbourhood components analysis, with the log of their p_i.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = _arguments.positive("NCA", "temperature", temperature)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        _arguments.labelled("NCA", embeddings, labels)
        if embeddings.shape[0] == 0:
            return embeddings.sum()
        mates = classmates(labels)
        targets = torch.where(mates.others > 0, mates.ids, IGNORED)
        return _arguments.of(
            "NCA", proto_loss, embeddings, embeddings, targets, classes=mates.ids, exclude=_arguments.numbered(embeddings),
            metric="sqeuclidean", temperature=self.temperature,
        )  # fmt: skip


class _Proxies(nn.Module):
    """`weight` [num_classes, dim]: a learned direction for each class."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        name = type(self).__name__
        self.num_classes = _arguments.whole(name, "num_classes", num_classes)
        self.dim = _arguments.whole(name, "dim", dim)
        self.weight = nn.Parameter(torch.empty(self.num_classes, self.dim))
        nn.init.xavier_uniform_(self.weight)

    def _loss(self, embeddings: Tensor, labels: Tensor, temperature: float, **options: object) -> Tensor:
        return _arguments.of(
            type(self).__name__, proto_loss, embeddings, self.weight, labels, metric="cosine", temperature=temperature,
            **options,
        )  # fmt: skip

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        name = type(self).__name__
        _arguments.labelled(name, embeddings, labels)
        if embeddings.shape[1] != self.dim:
            raise ValueError(f"{name}: embeddings must have {self.dim} features, got shape {list(embeddings.shape)}")
        _check.floating(name, embeddings=embeddings, weight=self.weight)
        _check.label_range(name, "labels", labels, self.num_classes)


class ProxyNCA(_Proxies):
    r"""loss = -mean_i log softmax_k(-|x_i - w_k|^2 / temperature)[y_i], x and w of length 1.

    The sum is over all proxies, as in ProxyNCA++ and pytorch-metric-learning; the first paper left the positive one out of it.

    Shapes: embeddings `[B, dim]`, labels `[B]` int64 in `[0, num_classes)` -> `[]`. `weight` `[num_classes, dim]` is learned.

    Errors: TypeError and ValueError, in the head's name. Kernels: those of `proto_loss`.

    Source: Movshovitz-Attias et al. 2017, arXiv:1703.07464; Teh et al. 2020, arXiv:2004.01113.
    """

    def __init__(self, num_classes: int, dim: int, temperature: float = 1.0) -> None:
        super().__init__(num_classes, dim)
        self.temperature = _arguments.positive("ProxyNCA", "temperature", temperature)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        self._check(embeddings, labels)
        return self._loss(embeddings, labels, self.temperature / 2)  # |x - w|^2 = 2 (1 - cos)


class CosFace(_Proxies):
    r"""loss = -mean_i log softmax_k(scale (cos(x_i, w_k) - margin [k = y_i]))[y_i].

    Shapes: embeddings `[B, dim]`, labels `[B]` int64 in `[0, num_classes)` -> `[]`. `weight` `[num_classes, dim]` is learned.

    Errors: TypeError and ValueError, in the head's name. Kernels: those of `proto_loss`.

    Source: Wang et al. 2018, arXiv:1801.09414, eq. 4.
    """

    def __init__(self, num_classes: int, dim: int, margin: float = 0.35, scale: float = 64.0) -> None:
        super().__init__(num_classes, dim)
        self.margin = _arguments.finite("CosFace", "margin", margin)
        self.scale = _arguments.positive("CosFace", "scale", scale)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        self._check(embeddings, labels)
        return self._loss(embeddings, labels, 1 / self.scale, margin=self.margin * self.scale)


class ArcFace(_Proxies):
    r"""loss = -mean_i log softmax_k(scale cos(theta_ik + margin [k = y_i]))[y_i], theta_ik the angle of x_i and w_k.

    Where theta + margin is beyond pi, the logit is scale (cos theta - margin sin margin), which goes on falling.

    Shapes: embeddings `[B, dim]`, labels `[B]` int64 in `[0, num_classes)` -> `[]`. `margin` in radians, from 0 to pi. `weight`
    `[num_classes, dim]` is learned.

    Errors: TypeError and ValueError, in the head's name. Kernels: those of `proto_loss`.

    Source: Deng et al. 2019, arXiv:1801.07698, eq. 3.

    ```python
    import torch
    import fastmeta

    criterion = fastmeta.heads.ArcFace(1000, 64, margin=0.5, scale=64.0)
    x, y = torch.randn(32, 64), torch.randint(0, 1000, (32,))
    criterion(x, y).backward()
    ```
    """

    def __init__(self, num_classes: int, dim: int, margin: float = 0.5, scale: float = 64.0) -> None:
        super().__init__(num_classes, dim)
        self.margin = _arguments.finite("ArcFace", "margin", margin)
        self.scale = _arguments.positive("ArcFace", "scale", scale)
        if not 0 <= self.margin <= math.pi:
            raise ValueError(f"ArcFace: margin must be in [0, pi], got {margin}")

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        self._check(embeddings, labels)
        own = self.weight[labels.clamp(0, self.num_classes - 1)]
        moved = 1 - with_angle(1 - row_distances(embeddings, own, "cosine"), self.margin)
        return self._loss(embeddings, labels, 1 / self.scale, target_distance=moved)


def with_angle(cosine: Tensor, margin: float) -> Tensor:
    """cos(theta + margin) from cos(theta); its gradient at 0 and pi, where that of the sine is infinite, is the cosine's part alone."""
    sine = ((1 - cosine) * (1 + cosine)).clamp(min=torch.finfo(cosine.dtype).tiny).sqrt()
    moved = cosine * math.cos(margin) - sine * math.sin(margin)
    return torch.where(cosine >= -math.cos(margin), moved, cosine - margin * math.sin(margin))

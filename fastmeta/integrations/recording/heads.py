"""Scores of a few-shot head, which cross-entropy makes one op with its loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._torch import is_plain, of_class
from ...distance.proto_loss import proto_loss
from .._scores import scores
from . import report
from .known import DTYPES
from .recorded import NOTHING, Recorded


class Scores(Recorded):
    """-d(x, c_k), [Q, N], of copies of the features."""

    what = "scores"
    __slots__ = ("centres", "dtype", "metric", "query", "shape")
    query: Tensor
    centres: Tensor
    metric: Any
    dtype: torch.dtype

    def _compute(self) -> Tensor:
        return scores(self.query, self.centres, self.metric)

    def _evaluate(self) -> Tensor:
        with torch.no_grad():
            return self._compute()

    def cross_entropy(self, targets: Any) -> Any:
        """F.cross_entropy; NotImplemented: PyTorch has to say what is wrong, or to take what is left out."""
        if self.kept is not None or not targets.numel() or not is_plain() or torch.is_autocast_enabled("cpu"):
            return NotImplemented
        least, most = torch.aminmax(targets)
        if int(least) < 0 or int(most) >= self.shape[1]:
            return NotImplemented
        report.note("alone", "head", "its loss")
        return proto_loss(self.query, self.centres, targets, metric=self.metric)


def recorded_scores(query: Tensor, centres: Any, metric: Any) -> Scores | None:
    """None: they are to be computed at once."""
    if not report.ON or not torch.is_grad_enabled() or type(query) is not Tensor or type(centres) is not Tensor:
        return None
    right = all(x.ndim == 2 and x.is_cpu and x.dtype in DTYPES and not x.is_inference() for x in (query, centres))
    if not right or query.dtype is not centres.dtype or query.shape[1] != centres.shape[1] or not centres.numel():
        return None
    trained = query.requires_grad or centres.requires_grad
    if not trained or not is_plain() or torch.is_autocast_enabled("cpu") or torch.is_inference_mode_enabled():
        return None
    self: Scores = of_class(Scores, NOTHING)
    self.kept = self.known = None
    self.query, self.centres, self.metric = query.clone(), centres.clone(), metric
    self.shape, self.dtype = torch.Size((query.shape[0], centres.shape[0])), query.dtype
    return self

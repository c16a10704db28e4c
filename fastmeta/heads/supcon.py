from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..distance.proto_loss import proto_loss
from . import _arguments

IGNORED = -100


class Classmates(NamedTuple):
    """Of each example, without waiting for a GPU."""

    ids: Tensor  # [B], its class, numbered from 0
    others: Tensor  # [B], how many more its class has
    one: Tensor  # [B], one of these, itself where there is none


def classmates(labels: Tensor) -> Classmates:
    """From labels [B] of any values: sorted, a class is one run, and each example's classmate is the next in it."""
    order = labels.argsort(stable=True)
    place, ordered = torch.arange(labels.shape[0], device=labels.device), labels[order]
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(is_first, place, 0).cummax(0).values
    after = torch.where(is_first.roll(-1), first, place + 1)  # the last's next is the first
    ids = torch.empty_like(labels).scatter(0, order, is_first.cumsum(0) - 1)
    one = torch.empty_like(labels).scatter(0, order, order[after])
    counts = torch.zeros_like(labels).scatter_add(0, ids, torch.ones_like(labels))
    return Classmates(ids, counts[ids] - 1, one)


class SupCon(nn.Module):
    r"""loss = -mean_i mean_{p in P(i)} log(exp(cos(z_i, z_p) / t) / sum_{k != i} exp(cos(z_i, z_k) / t)), t the temperature.

    P(i): the other embeddings with i's label. This is the paper's L_out; the mean is over the anchors that have a positive, and is 0
    where none has. There is no base temperature. The mean over positives is cos with the mean of their unit vectors, so that no
    `[B, B]` matrix is made.

    Shapes: embeddings `[B, D]`, labels `[B]` int64 of any values -> `[]`. Two views: both in embeddings, labels twice.

    Errors: TypeError and ValueError, in the head's name. Kernels: those of `proto_loss`.

    Source: Khosla et al. 2020, arXiv:2004.11362, eq. 2.

    ```python
    import torch
    import fastmeta

    criterion = fastmeta.heads.SupCon(temperature=0.1)
    z = torch.randn(64, 128, requires_grad=True)
    criterion(z, torch.arange(16).repeat(4)).backward()
    ```
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = _arguments.positive("SupCon", "temperature", temperature)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        _arguments.labelled("SupCon", embeddings, labels)
        if embeddings.shape[0] == 0:
            return embeddings.sum()
        mates = classmates(labels)
        has_mates = mates.others > 0
        to_one = proto_loss(
            embeddings,
            embeddings,
            torch.where(has_mates, mates.one, IGNORED),
            metric="cosine",
            temperature=self.temperature,
            exclude=_arguments.numbered(embeddings),
        )
        z = normalize(embeddings, dim=-1, eps=torch.finfo(embeddings.dtype).tiny)
        # The sum over anchors of cos with the one less the mean with all; z of a class with its sum s, over all of them, is s . s.
        of_classes = torch.zeros_like(z).index_add(0, mates.ids, z)
        share = torch.where(has_mates, mates.others.clamp(min=1).to(z.dtype).reciprocal(), 0)
        of_class = torch.zeros_like(share).index_put((mates.ids,), share)
        ones = (z * z[mates.one]).sum(-1)
        itself = torch.linalg.vecdot(z, z)
        of_all: Tensor = (of_class * torch.linalg.vecdot(of_classes, of_classes)).sum() - (share * itself).sum()
        farther: Tensor = ((has_mates * ones).sum() - of_all) / self.temperature  # a float times a count is float32
        return to_one + farther / has_mates.sum().clamp(min=1)

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..distance.proto_loss import proto_loss
from ..distance.symmetric_loss import symmetric_loss
from . import _arguments


class InfoNCE(nn.Module):
    r"""loss = -mean_i log softmax_j(cos(q_i, k_j) / temperature)[i]: key i is the positive of query i, all others are negatives.

    Shapes: query `[B, D]`, keys `[B, D]` or more rows, of which the first B are the positives -> `[]`. One-directional.

    Errors: TypeError and ValueError, in the head's name. Kernels: those of `proto_loss`.

    Source: van den Oord et al. 2018, arXiv:1807.03748, eq. 4; on unit vectors as in He et al. 2020, arXiv:1911.05722.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = _arguments.positive("InfoNCE", "temperature", temperature)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        _arguments.matrix("InfoNCE", query=query, keys=keys)
        if keys.shape[0] < query.shape[0] or keys.shape[1] != query.shape[1]:
            got = f"shapes {list(query.shape)} and {list(keys.shape)}"
            raise ValueError(f"InfoNCE: keys must hold a row for each query, with as many features, got {got}")
        return proto_loss(query, keys, _arguments.numbered(query), metric="cosine", temperature=self.temperature)


class NTXent(nn.Module):
    r"""loss = -mean_i log(exp(cos(z_i, z_j(i)) / temperature) / sum_{k != i} exp(cos(z_i, z_k) / temperature)).

    Over all 2B embeddings of two views; j(i) is the other view of i.

    Shapes: z1, z2 `[B, D]` -> `[]`.

    Errors: TypeError and ValueError, in the head's name. Kernels: those of `proto_loss`.

    Source: Chen et al. 2020, arXiv:2002.05709, eq. 1.
    """

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = _arguments.positive("NTXent", "temperature", temperature)

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        _arguments.pairs("NTXent", z1=z1, z2=z2)
        z = torch.cat([z1, z2])
        own = _arguments.numbered(z)
        other = own.roll(z1.shape[0])
        return proto_loss(z, z, other, metric="cosine", temperature=self.temperature, exclude=own)


class CLIPLoss(nn.Module):
    r"""loss = half of the cross-entropy of images against texts and of texts against images, logits logit_scale cos(i, t).

    Shapes: image_features, text_features `[B, D]` -> `[]`. `logit_scale`: positive, a number or a tensor with one element, as models
    hand it on: the exponential of what they learn.

    Errors: TypeError and ValueError, in the head's name. Kernels: those of `symmetric_loss`.

    Source: Radford et al. 2021, arXiv:2103.00020, figure 3.
    """

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: float | Tensor = 1 / 0.07) -> Tensor:
        _arguments.pairs("CLIPLoss", image_features=image_features, text_features=text_features)
        if isinstance(logit_scale, Tensor):
            temperature: float | Tensor = (1 / logit_scale).to(image_features.dtype)
        else:
            temperature = 1 / _arguments.positive("CLIPLoss", "logit_scale", logit_scale)
        options: dict[str, Any] = {"metric": "cosine", "temperature": temperature}
        loss: Tensor = _arguments.of("CLIPLoss", symmetric_loss, image_features, text_features, **options)
        return loss

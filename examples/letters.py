"""Some classes of glyphs as an ordinary problem of classification, and a network trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta.data import Glyphs

Params = Mapping[str, Tensor]


class Letters(NamedTuple):
    x: Tensor  # [n, 1, 28, 28]
    y: Tensor  # [n]


def letters(classes: int, examples: int, device: str) -> tuple[Letters, Letters]:
    """Training images and a third as many for test."""
    images = Glyphs("train", examples=examples + examples // 3).images[:classes].to(device).float() / 255
    y = torch.arange(classes, device=device)
    parts = images[:, :examples], images[:, examples:]
    training, test = (Letters(part.flatten(0, 1), y.repeat_interleave(part.shape[1])) for part in parts)
    return training, test


def network(classes: int, width: int = 64) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, classes))


def cross_entropy(net: nn.Module, params: Params, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(functional_call(net, dict(params), (x,)), y)


@torch.no_grad()
def accuracy(net: nn.Module, data: Letters) -> float:
    return (net(data.x).argmax(-1) == data.y).float().mean().item()

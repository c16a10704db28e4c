"""Drawings as other hands might have made them: moved, turned, scaled and slanted a little, with thicker or thinner strokes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TURN, SHIFT, SCALE, SLANT = math.radians(12), 0.12, 0.15, 0.25  # at strength 1; the shift in halves of a side


def jittered(images: Tensor, strength: float) -> Tensor:
    """[n, 1, h, w] -> the same, each by a random affine map; torch's generator draws."""
    if strength == 0:
        return images
    turn, slant, *rest = strength * (2 * torch.rand(6, len(images)) - 1)
    turn, slant = turn * TURN, slant * SLANT
    across, down = ((rest[i] * SCALE).exp() for i in (0, 1))
    rows = [
        across * turn.cos(),
        across * (slant - turn.sin()),
        rest[2] * SHIFT,
        down * turn.sin(),
        down * turn.cos(),
        rest[3] * SHIFT,
    ]
    maps = torch.stack(rows, 1).view(-1, 2, 3).to(images)
    return F.grid_sample(images, F.affine_grid(maps, list(images.shape), align_corners=False), align_corners=False)


def redrawn(images: Tensor, strength: float) -> Tensor:
    """Each with strokes thicker or thinner by up to a pixel on either side, times `strength`."""
    if strength == 0:
        return images
    thick, thin = F.max_pool2d(images, 3, 1, 1), -F.max_pool2d(-images, 3, 1, 1)
    by = strength * (2 * torch.rand(len(images), 1, 1, 1).to(images) - 1)
    return images + by.clamp_min(0) * (thick - images) - by.clamp_max(0) * (thin - images) * 0.5


class Views(nn.Module):
    """An encoder's mean over an image and `views` - 1 jittered ones, the same maps in every call."""

    def __init__(self, encoder: nn.Module, views: int, strength: float) -> None:
        super().__init__()
        self.encoder, self.views, self.strength = encoder, views, strength

    def forward(self, images: Tensor) -> Tensor:
        found = self.encoder(images).clone()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for _ in range(self.views - 1):
                found += self.encoder(jittered(images, self.strength))
        return found / self.views

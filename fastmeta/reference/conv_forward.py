from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import ConvBlock
from .mlp_forward import linear

Params = Sequence[Tensor | None]


def mean(x: Tensor, norm: str | int) -> Tensor:
    """[T?, n, C, H, W] -> the mean of each set of a norm, which broadcasts to x: of a channel over the batch, or of an image over a
    group of channels."""
    if norm == "batch":
        return x.mean((-4, -2, -1), keepdim=True)
    of_groups: Tensor = x.unflatten(-3, (int(norm), -1)).mean((-3, -2, -1), keepdim=True)  # [T?, n, groups, 1, 1, 1]
    return of_groups.expand(*of_groups.shape[:-3], x.shape[-3] // int(norm), 1, 1).flatten(-4, -3)


def of_channels(p: Tensor) -> Tensor:
    """[T?, C] -> [T?, 1, C, 1, 1]."""
    return p.unsqueeze(-2).unsqueeze(-1).unsqueeze(-1)


def affine(u: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    y = u if gamma is None else u * of_channels(gamma)
    return y if beta is None else y + of_channels(beta)


def patches_of(x: Tensor, block: ConvBlock) -> Tensor:
    """[T?, n, in, H, W] -> what the kernel, k x k, meets at each place, [T?, n, in k k, H' W']."""
    patches = F.unfold(x.flatten(0, -4), block.kernel, padding=block.padding, stride=block.stride)
    found: Tensor = patches.unflatten(0, x.shape[:-3])
    return found


def convolved(patches: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    """[T?, n, in k k, H' W'], [T?, out, in, k, k], [T?, out] -> [T?, n, out, H', W']."""
    z = weight.flatten(-3).unsqueeze(-3) @ patches
    return affine(z.unflatten(-1, (rows, -1)), None, bias)


def convolution(params: Params, x: Tensor, block: ConvBlock) -> tuple[Tensor, Tensor]:
    """The patches of x, and the kernel on them."""
    weight, bias, *_ = params
    assert weight is not None
    patches = patches_of(x, block)
    return patches, convolved(
        patches, weight, bias, (x.shape[-2] + 2 * block.padding - block.kernel) // block.stride + 1
    )


def winners(x: Tensor, places: Tensor | None, pool: int | str) -> Tensor:
    """The numbers at the places that won in a max-pool; without one, all; the means over all."""
    if isinstance(pool, str):
        return x.mean((-2, -1), keepdim=True)
    if places is None:
        return x
    found: Tensor = x.flatten(-2).gather(-1, places.flatten(-2)).unflatten(-1, places.shape[-2:])
    return found


class Passed(NamedTuple):
    """What a block leaves: the patches of its input, whose height and width are `size`; u = (z - mean) s, z itself without norm;
    y, which relu takes; where the winners of its windows lie, or the pool that has none."""

    patches: Tensor
    size: tuple[int, int]
    s: Tensor | None
    u: Tensor
    y: Tensor
    places: Tensor | None
    pool: int | str

    @property
    def rows(self) -> int:
        return self.y.shape[-2]

    @property
    def shape(self) -> torch.Size:
        """[C, H, W] of what the block hands on."""
        if isinstance(self.pool, str):
            return torch.Size((self.y.shape[-3], 1, 1))
        return (self.y if self.places is None else self.places).shape[-3:]


def pass_block(params: Params, x: Tensor, block: ConvBlock, added: Tensor | None = None) -> tuple[Passed, Tensor]:
    """params: weight, bias, gamma, beta. What the block leaves, and what it hands on. `added`: to y, by a skip."""
    _, _, gamma, beta = params
    patches, u = convolution(params, x, block)
    s, size = None, (x.shape[-2], x.shape[-1])
    if block.norm is not None:
        t = u - mean(u, block.norm)
        s = (mean(t.square(), block.norm) + block.eps).rsqrt()
        u = t * s
    y = affine(u, gamma, beta)
    y = y if added is None else y + added
    out, places = y, None
    if block.relu:
        out = F.leaky_relu(y, block.slope) if block.slope else torch.relu(y)
    if not isinstance(block.pool, str) and block.pool > 1:
        found = F.max_pool2d(out.detach().flatten(0, -4), block.pool, return_indices=True)[1]
        places = found.unflatten(0, out.shape[:-3])
    return Passed(patches, size, s, u, y, places, block.pool), winners(out, places, block.pool)


def pass_blocks(params: Params, inputs: Tensor, blocks: Sequence[ConvBlock]) -> tuple[list[Passed], Tensor, Tensor]:
    """What each block leaves, the features [T?, n, F], and the outputs [T?, n, C]."""
    passes, x = [], inputs
    for i, block in enumerate(blocks):
        passed, x = pass_block(params[4 * i : 4 * i + 4], x, block)
        passes.append(passed)
    weight, features = params[-2], x.flatten(-3)
    assert weight is not None
    return passes, features, linear(features, weight, params[-1])


def conv_outputs(params: Params, inputs: Tensor, blocks: Sequence[tuple[Any, ...]]) -> Tensor:
    """[T?, n, in, H, W] -> [T?, n, C]."""
    return pass_blocks(params, inputs, [ConvBlock(*block) for block in blocks])[2]


def conv_forward(
    params: Params, inputs: Tensor, blocks: Sequence[tuple[Any, ...]]
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """`conv_outputs`. Without a linear layer the features [T?, n, F]; with batch norms also their means and variances, [T?, channels of
    all], without a graph."""
    if params[-2] is not None:
        return conv_outputs(params, inputs, blocks)
    read: list[Tensor] = []  # by each block
    x, means, variances = inputs, [], []
    for i, fields in enumerate(blocks):
        block, of_block = ConvBlock(*fields), params[4 * i : 4 * i + 4]
        x, added = (read[i - block.skip], x) if block.skip else (x, None)
        read.append(x)
        if block.norm == "batch":
            z = convolution(of_block, x, block)[1].detach()
            means.append(mean(z, "batch").flatten(-4))
            variances.append(mean((z - mean(z, "batch")).square(), "batch").flatten(-4))
        x = pass_block(of_block, x, block, added)[1]
    features = x.flatten(-3)
    return (features, torch.cat(means, -1), torch.cat(variances, -1)) if means else features

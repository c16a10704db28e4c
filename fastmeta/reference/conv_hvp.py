from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..types import ConvBlock
from .conv_forward import Params, Passed, affine, convolved, mean, pass_blocks, patches_of, winners
from .conv_grad import backpropagate, gained, of_image, of_kernel, projected, sums, unpooled
from .mlp_forward import linear
from .mlp_grad import output_gradient, through
from .mlp_hvp import output_tangent
from .mlp_loss import Targets


class Tangent(NamedTuple):
    """The tangents of a block's pass: of its patches, of s, of u."""

    patches: Tensor
    s: Tensor | None
    u: Tensor


def block_tangent(
    params: Params, vectors: Params, rx: Tensor, passed: Passed, block: ConvBlock
) -> tuple[Tangent, Tensor]:
    """The tangents of `pass_block`, and of what the block hands on; rx: of its input."""
    (weight, _, gamma, _), (dweight, dbias, dgamma, dbeta) = params, vectors
    assert weight is not None and dweight is not None
    patches = patches_of(rx, block)
    ru = convolved(patches, weight, None, passed.rows) + convolved(passed.patches, dweight, dbias, passed.rows)
    rs = None
    if block.norm is not None:
        assert passed.s is not None
        along = passed.s * mean(ru * passed.u, block.norm)
        rs, ru = -passed.s * along, passed.s * (ru - mean(ru, block.norm)) - passed.u * along
    ry = affine(gained(ru, gamma), None, dbeta)
    ry = ry if dgamma is None else ry + gained(passed.u, dgamma)
    ry = through(ry, passed.y, "relu") if block.relu else ry
    return Tangent(patches, rs, ru), winners(ry, passed.places, block.pool)


def tangents_back(
    params: Params,
    vectors: Params,
    passes: Sequence[Passed],
    tangents: Sequence[Tangent],
    blocks: Sequence[ConvBlock],
    d: Tensor,
    rd: Tensor,
) -> list[Tensor | None]:
    """The tangents of the blocks' gradients; d, rd: of what the last one hands on, [T?, n, C, H, W]."""
    products: list[Tensor | None] = [None] * (4 * len(blocks))
    for i in reversed(range(len(blocks))):
        block, passed, r = blocks[i], passes[i], tangents[i]
        (weight, bias, gamma, beta), (dweight, _, dgamma, _) = params[4 * i : 4 * i + 4], vectors[4 * i : 4 * i + 4]
        assert weight is not None and dweight is not None
        dy, rdy = (unpooled(x, passed) for x in (d, rd))
        if block.relu:
            dy, rdy = (through(x, passed.y, "relu") for x in (dy, rdy))
        products[4 * i + 2] = None if gamma is None else sums(rdy * passed.u + dy * r.u)
        products[4 * i + 3] = None if beta is None else sums(rdy)
        dz, rdz = gained(dy, gamma), gained(rdy, gamma)
        rdz = rdz if dgamma is None else rdz + gained(dy, dgamma)
        if block.norm is not None:
            assert passed.s is not None and r.s is not None
            bend = r.u * mean(dz * passed.u, block.norm) + passed.u * mean(dz * r.u, block.norm)
            rprojected = projected(rdz, passed.u, block.norm) - bend
            dz = projected(dz, passed.u, block.norm)
            dz, rdz = passed.s * dz, r.s * dz + passed.s * rprojected
        products[4 * i] = of_kernel(rdz, passed.patches, weight) + of_kernel(dz, r.patches, weight)
        products[4 * i + 1] = None if bias is None else sums(rdz)
        if i:
            d = of_image(dz, weight, passed, block)
            rd = of_image(rdz, weight, passed, block) + of_image(dz, dweight, passed, block)
    return products


def conv_hvp(
    params: Params,
    vectors: Params,
    inputs: Tensor,
    targets: Targets,
    blocks: Sequence[tuple[Any, ...]],
    loss: str,
    curvature: str,
) -> list[Tensor | None]:
    """H v for each task: the forward and backward pass of `conv_grad`, differentiated along v (r...: tangents); "ggn": the
    tangent of dL/dz, sent back through the plain backward pass, J' (H_out (J v))."""
    of_blocks = [ConvBlock(*block) for block in blocks]
    passes, features, outputs = pass_blocks(params, inputs, of_blocks)
    rx, tangents = torch.zeros_like(inputs), []
    for i, block in enumerate(of_blocks):
        at = slice(4 * i, 4 * i + 4)
        tangent, rx = block_tangent(params[at], vectors[at], rx, passes[i], block)
        tangents.append(tangent)
    head, dhead = params[-2], vectors[-2]
    assert head is not None and dhead is not None
    rfeatures = rx.flatten(-3)
    routputs = linear(rfeatures, head, None) + linear(features, dhead, vectors[-1])
    rd = output_tangent(outputs, routputs, targets, loss)
    if curvature == "ggn":
        return backpropagate(params, passes, features, rd, of_blocks)
    d = output_gradient(outputs, targets, loss)
    of_images = [x.unflatten(-1, passes[-1].shape) for x in (d @ head, rd @ head + d @ dhead)]
    products = tangents_back(params, vectors, passes, tangents, of_blocks, *of_images)
    return [*products, rd.mT @ features + d.mT @ rfeatures, None if params[-1] is None else rd.sum(-2)]

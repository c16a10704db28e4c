from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import ConvBlock
from .conv_forward import Params, Passed, mean, of_channels, pass_blocks
from .mlp_grad import output_gradient, through
from .mlp_loss import Targets, task_loss


def unpooled(d: Tensor, passed: Passed) -> Tensor:
    """A gradient to the winners -> to all numbers of the windows."""
    like, places = passed.y, passed.places
    if isinstance(passed.pool, str):
        return (d / like.shape[-2:].numel()).expand(*d.shape[:-2], *like.shape[-2:])
    if places is None:
        return d
    zeros = torch.zeros_like(like).flatten(-2)
    found: Tensor = zeros.scatter(-1, places.flatten(-2), d.flatten(-2)).unflatten(-1, like.shape[-2:])
    return found


def of_kernel(dz: Tensor, patches: Tensor, like: Tensor) -> Tensor:
    """[T?, n, out, H', W'], [T?, n, in k k, H' W'] -> the gradient to the kernel, [T?, out, in, k, k]."""
    found: Tensor = (dz.flatten(-2) @ patches.mT).sum(-3).unflatten(-1, like.shape[-3:])
    return found


def of_image(dz: Tensor, weight: Tensor, passed: Passed, block: ConvBlock) -> Tensor:
    """[T?, n, out, H', W'] -> the gradient to the block's input, [T?, n, in, H, W]."""
    patches = weight.flatten(-3).unsqueeze(-3).mT @ dz.flatten(-2)
    images = F.fold(patches.flatten(0, -3), passed.size, block.kernel, padding=block.padding, stride=block.stride)
    found: Tensor = images.unflatten(0, patches.shape[:-2])
    return found


def sums(x: Tensor) -> Tensor:
    """[T?, n, C, H, W] -> [T?, C]."""
    return x.sum((-4, -2, -1))


def gained(d: Tensor, gamma: Tensor | None) -> Tensor:
    return d if gamma is None else d * of_channels(gamma)


def projected(g: Tensor, u: Tensor, norm: str | int) -> Tensor:
    """g - mean(g) - u mean(g u): what a norm leaves of a gradient, before its factor s."""
    return g - mean(g, norm) - u * mean(g * u, norm)


def backpropagate(
    params: Params, passes: Sequence[Passed], features: Tensor, doutputs: Tensor, blocks: Sequence[ConvBlock]
) -> list[Tensor | None]:
    """J' doutputs, J the Jacobian of the outputs in the parameters; passes, features: as `pass_blocks` gives them."""
    head = params[-2]
    assert head is not None
    grads: list[Tensor | None] = [None] * (len(params) - 2)
    grads += [doutputs.mT @ features, None if params[-1] is None else doutputs.sum(-2)]
    d = (doutputs @ head).unflatten(-1, passes[-1].shape)  # to what the block hands on
    for i in reversed(range(len(blocks))):
        block, passed = blocks[i], passes[i]
        weight, bias, gamma, beta = params[4 * i : 4 * i + 4]
        assert weight is not None
        dy = unpooled(d, passed)
        dy = through(dy, passed.y, "relu") if block.relu else dy
        grads[4 * i + 2] = None if gamma is None else sums(dy * passed.u)
        grads[4 * i + 3] = None if beta is None else sums(dy)
        dz = gained(dy, gamma)
        if block.norm is not None:
            assert passed.s is not None
            dz = passed.s * projected(dz, passed.u, block.norm)
        grads[4 * i] = of_kernel(dz, passed.patches, weight)
        grads[4 * i + 1] = None if bias is None else sums(dz)
        if i:
            d = of_image(dz, weight, passed, block)
    return grads


def conv_grad(
    params: Params, inputs: Tensor, targets: Targets, blocks: Sequence[tuple[Any, ...]], loss: str
) -> tuple[Tensor, list[Tensor | None]]:
    """Each task's loss [T?] and its gradients, one [T?, ...] for each parameter, by backpropagation written out."""
    of_blocks = [ConvBlock(*block) for block in blocks]
    passes, features, outputs = pass_blocks(params, inputs, of_blocks)
    doutputs = output_gradient(outputs, targets, loss)
    return task_loss(outputs, targets, loss), backpropagate(params, passes, features, doutputs, of_blocks)

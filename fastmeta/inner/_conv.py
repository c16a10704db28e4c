"""What the conv ops check and bring into canonical form, beside `_network`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import _check
from ..types import ConvBlock
from ._network import LOSSES, NetworkInput, came, check_tensors, check_weights, folded

EXAMPLE_RANK = 4  # [n, channels, height, width]
MOST_PIXELS = 4096  # of a stride, a padding or a window
MOST_GROUPS = 2**31 - 1
MEAN = "mean"  # a pool over all pixels
PLAIN = {"slope": 0.0, "skip": 0}  # of a block outside encoders
Blocks = tuple[tuple[Any, ...], ...]  # of each the fields of a ConvBlock: a static argument


def encodes(op: str, params: Any) -> bool:
    """Whether `op` has no linear layer."""
    pairs = isinstance(params, list | tuple) and len(params) > 1
    return pairs and op == "conv_forward" and params[-2] is None and params[-1] is None


def check_blocks(op: str, blocks: Any, encodes: bool = False) -> Blocks:
    """A sequence of ConvBlock as plain tuples. `encodes`: of a network without a linear layer, which takes all fields."""
    right = isinstance(blocks, list | tuple) and len(blocks) > 0
    if not right or not all(isinstance(block, ConvBlock) for block in blocks):
        came = _check.brief(blocks) if not isinstance(blocks, list | tuple) else [type(b).__name__ for b in blocks]
        raise ValueError(f"{op}: blocks must be a sequence of at least one ConvBlock, got {came}")
    found = tuple(_block(op, f"blocks[{i}]", block) for i, block in enumerate(blocks))
    for i, fields in enumerate(found):
        if fields[5] == MEAN and (encodes or i + 1 < len(found)):
            raise ValueError(
                f"{op}: blocks[{i}].pool must be a number but in the last block before a linear layer, got {fields[5]!r}"
            )
    if encodes or any(fields[6] or fields[8] for fields in found):
        _check_of_encoder(op, found, encodes)
    return found


def _block(op: str, name: str, block: ConvBlock) -> tuple[Any, ...]:
    stride = _check.integer(op, f"{name}.stride", block.stride, 1, MOST_PIXELS)
    padding = _check.integer(op, f"{name}.padding", block.padding, 0, MOST_PIXELS)
    norm = block.norm
    if isinstance(norm, str) or norm is None:
        if norm is not None and norm != "batch":
            raise ValueError(f"{op}: {name}.norm must be 'batch', None or a number of groups, got {norm!r}")
        norm = norm and "batch"
    else:
        norm = _check.integer(op, f"{name}.norm", norm, 1, MOST_GROUPS)
    eps = _check.number(op, f"{name}.eps", block.eps)
    if not 0 < eps < _check.INFINITY:
        raise ValueError(f"{op}: {name}.eps must be positive and finite, got {eps}")
    relu = _check.flag(op, f"{name}.relu", block.relu)
    pool: int | str = block.pool
    if pool != MEAN:
        pool = _check.integer(op, f"{name}.pool", pool, 1, MOST_PIXELS)
    slope = _check.number(op, f"{name}.slope", block.slope)
    if not 0 <= slope < 1:
        raise ValueError(f"{op}: {name}.slope must be from 0 to below 1, got {slope}")
    kernel = _check.integer(op, f"{name}.kernel", block.kernel, 1, MOST_PIXELS)
    skip = _check.integer(op, f"{name}.skip", block.skip, 0, MOST_PIXELS)
    return stride, padding, norm, eps, relu, pool, slope if relu else 0.0, kernel, skip


def _check_of_encoder(op: str, blocks: Blocks, encodes: bool) -> None:
    """What an encoder's blocks alone have: slope and skip; and its kernels."""
    for i, fields in enumerate(blocks):
        block = ConvBlock(*fields)
        if encodes and block.kernel != 3 and (block.kernel != 1 or block.padding):
            came = f"{block.kernel} with padding {block.padding}"
            raise ValueError(f"{op}: blocks[{i}].kernel must be 3, or 1 with padding 0, in an encoder, got {came}")
        for name, plain in PLAIN.items():
            value = getattr(block, name)
            if not encodes and value != plain:
                raise ValueError(
                    f"{op}: blocks[{i}].{name} must be {plain} but in conv_forward without a linear layer, got {value}"
                )
        if block.skip and not 2 <= block.skip <= i:
            raise ValueError(f"{op}: blocks[{i}].skip must be 0, or from 2 to {i}, got {block.skip}")
        if block.skip:
            before = ConvBlock(*blocks[i - 1])
            if before.relu or before.pool != 1:
                raise ValueError(
                    f"{op}: blocks[{i - 1}] must have no relu and pool 1, as blocks[{i}] adds to it, got relu={before.relu} and "
                    f"pool={before.pool}"
                )


def check_loss(op: str, loss: Any) -> Any:
    return _check.one_of(op, "loss", loss, LOSSES)


def param_ranks(blocks: int) -> tuple[int, ...]:
    """Of one task's parameters: kernel, bias, gamma, beta of each block; weight and bias of the linear layer."""
    return (*((4, 1, 1, 1) * blocks), 2, 1)


def check_conv(op: str, params: Any, blocks: Blocks, **examples: Tensor) -> NetworkInput:
    """Check parameters and images against each other; fold their batch dimensions into one task axis."""
    ranks = param_ranks(len(blocks))
    if not isinstance(params, list | tuple) or len(params) != len(ranks):
        raise ValueError(
            f"{op}: params must be a sequence of {len(ranks)}, [weight, bias, gamma, beta] of each of {len(blocks)} blocks and "
            f"[weight, bias] of the linear layer, got {came(params)}"
        )
    check_weights(op, params, range(0, len(ranks) - 4 * encodes(op, params), 4))
    for i, block in enumerate(blocks):
        for place in (4 * i + 2, 4 * i + 3):
            if block[2] is None and params[place] is not None:
                raise ValueError(f"{op}: params[{place}] must be None, as blocks[{i}] has no norm, got a tensor")
    lead = check_tensors(op, params, ranks, examples, EXAMPLE_RANK)
    for name, x in examples.items():
        _check_sizes(op, name, x, params, blocks)
    return folded(params, lead, ranks, examples, EXAMPLE_RANK)


def _check_sizes(op: str, name: str, x: Tensor, params: Sequence[Tensor | None], blocks: Blocks) -> None:
    """That the images `x` fit the blocks, the blocks each other and the linear layer."""
    channels, height, width = x.shape[-3:]
    read: list[tuple[int, int, int]] = []  # by each block
    for i, fields in enumerate(blocks):
        block, weight, handed_on = ConvBlock(*fields), params[4 * i], (channels, height, width)
        assert weight is not None
        channels, height, width = read[i - block.skip] if block.skip else handed_on
        read.append((channels, height, width))
        if weight.shape[-3:] != (channels, block.kernel, block.kernel) or channels == 0:
            side = f"{block.kernel}, {block.kernel}"
            raise ValueError(
                f"{op}: params[{4 * i}] must have shape [..., out, {channels}, {side}], got {_check.shape(weight)}"
            )
        out = weight.shape[-4]
        height, width = convolved_side(block, height), convolved_side(block, width)
        if min(pooled_side(block, height), pooled_side(block, width)) < 1 or out == 0:
            raise ValueError(
                f"{op}: blocks[{i}] must leave a pixel of a channel, got {name} of shape {_check.shape(x)}"
            )
        if isinstance(block.norm, int) and out % block.norm:
            raise ValueError(f"{op}: blocks[{i}].norm must divide the {out} channels, got {block.norm} groups")
        if block.norm == "batch" and x.shape[-4] * height * width < 2:
            raise ValueError(
                f"{op}: blocks[{i}].norm must be over more than one value, got {name} of shape {_check.shape(x)}"
            )
        if block.skip and (out, height, width) != handed_on:
            raise ValueError(
                f"{op}: blocks[{i}].skip must add numbers of one shape, [{out}, {height}, {width}], got {list(handed_on)} from "
                f"blocks[{i - 1}]"
            )
        _check_entries(op, params, range(4 * i + 1, 4 * i + 4), out)
        channels, height, width = out, pooled_side(block, height), pooled_side(block, width)
    last, features = params[-2], channels * height * width
    if last is None:
        return
    if last.shape[-1] != features or last.shape[-2] < 1:
        raise ValueError(
            f"{op}: params[{len(params) - 2}] must have shape [..., outputs, {features}] for {name}, got {_check.shape(last)}"
        )
    _check_entries(op, params, (len(params) - 1,), last.shape[-2])


def convolved_side(block: ConvBlock, side: int) -> int:
    """Height or width of what a block's convolution makes of an image."""
    return (side + 2 * block.padding - block.kernel) // block.stride + 1


def pooled_side(block: ConvBlock, side: int) -> int:
    """The same of what its pool makes of that."""
    return min(side, 1) if isinstance(block.pool, str) else side // block.pool


def _check_entries(op: str, params: Sequence[Tensor | None], places: Sequence[int], size: int) -> None:
    for place in places:
        p = params[place]
        if p is not None and p.shape[-1] != size:
            raise ValueError(f"{op}: params[{place}] must have {size} entries, got shape {_check.shape(p)}")


def cores(blocks: int, loss: str | None, examples: int = 1, before: str = "") -> tuple[Any, ...]:
    """What `call` takes: of params, of `before` ("vectors", "rates" or nothing), and of so many pairs of images and targets; without
    a loss, of images alone."""
    ranks = param_ranks(blocks)
    first = {"vectors": (ranks, ranks), "rates": (ranks, (None,)), "": (ranks,)}[before]
    targets = () if loss is None else (1,) if loss == "cross_entropy" else (2,)
    return (*first, *((EXAMPLE_RANK, *targets) * examples))

"""An encoder, `[n, ...] -> [n, ...]`: by the conv kernels as far as they know it, else as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._route import direct
from .._torch import BUFFERS, PARAMETERS, AnyBatchNorm, is_plain
from ..inner._conv import Blocks, convolved_side, cores, pooled_side
from ..types import ConvBlock
from .batch_norm import has_running_statistics, track
from .blocks import Block, Rest, blocks_of
from .layers import Graph, is_whole
from .program import Program
from .users_model import Seen


class Encoder:
    """What was seen of an encoder, as long as it holds."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.seen = module, Seen(module)
        program = Program(module)
        self.blocks, self.flattens, self.rest = _parts(program) or ((), False, None)
        self.seen.reads = program.reads

    def holds(self, module: nn.Module) -> bool:
        return module is self.module and self.seen.holds()

    def __call__(self, x: Tensor, of_tasks: bool) -> Tensor:
        found = None
        if self.blocks and x.ndim == 4 + of_tasks and x.is_cpu and not torch.is_autocast_enabled("cpu"):
            found = self._natively(x)
        return _as_it_is(self.module, x, of_tasks) if found is None else found

    def before_linear(self) -> tuple[list[Tensor | None], Blocks] | None:
        """Parameters and blocks as the ops of inner loops take them before a linear layer's; None where those know no such encoder."""
        fields = [block.fields for block in self.blocks]
        known = all((f.kernel, f.slope, f.skip) == (3, 0, 0) for f in fields) and self.flattens and bool(fields)
        if not known or any(
            has_running_statistics(block.norm) for block in self.blocks if block.fields.norm == "batch"
        ):
            return None
        params = [p for block in self.blocks for p in _as_it_runs(block)[1]]
        return params, tuple(map(tuple, fields))

    def _natively(self, x: Tensor) -> Tensor | None:
        """None where the kernels decline."""
        blocks, params = [], []
        for block in self.blocks:
            fields, of_block = _as_it_runs(block)
            blocks.append(tuple(fields))
            params += of_block
        found = direct("conv_forward", ([*params, None, None], x), (tuple(blocks),), cores(len(blocks), None))
        if found is None:
            return None
        sizes = _sizes(self.blocks, x)
        if len(found) > 1:
            on_batch = [
                (block, size)
                for block, size, fields in zip(self.blocks, sizes, blocks, strict=True)
                if fields[2] == "batch"
            ]
            _note_statistics(on_batch, x.shape[-4], found[1].detach(), found[2].detach())
        if self.flattens:
            return found[0]
        (fields, conv, _), (height, width) = self.blocks[-1], sizes[-1]
        images: Tensor = found[0].unflatten(
            -1, (conv.out_channels, pooled_side(fields, height), pooled_side(fields, width))
        )
        return images if self.rest is None else _as_it_is(self.rest, images, x.ndim == 5)


def encode(learner: Any, encoder: nn.Module, x: Tensor, of_tasks: bool = False) -> Tensor:
    """encoder(x); or, of x `[T, n, ...]`, that of each task, a batch of its own. `learner` remembers what was seen of the encoder."""
    if torch.compiler.is_compiling() or not is_plain():
        return _as_it_is(encoder, x, of_tasks)
    kept = learner._encoder
    if kept is None or not kept.holds(encoder):
        kept = learner.__dict__["_encoder"] = Encoder(encoder)
    found: Tensor = kept(x, of_tasks)
    return found


def features_of_tasks(learner: Any, body: nn.Module, x: Tensor) -> Tensor:
    """body of x [T, n, ...], all tasks as one batch; one after the other where batch norm must not mix them."""
    mixes = any(isinstance(m, AnyBatchNorm) and (m.training or not m.track_running_stats) for m in body.modules())
    if mixes and len(x):
        return encode(learner, body, x, of_tasks=True)
    features: Tensor = encode(learner, body, x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return features


def _as_it_is(module: Any, x: Tensor, of_tasks: bool) -> Tensor:
    found: Tensor = torch.stack([module(of_task) for of_task in x]) if of_tasks else module(x)
    return found


def _parts(program: Program) -> tuple[tuple[Block, ...], bool, Rest | None] | None:
    """Its blocks, and what follows: a Flatten, the rest, or nothing; None: it is something else."""
    graph = Graph(program, nothing=(nn.Identity,))
    blocks, place, taken = blocks_of(graph) if graph.end is not None else ([], 0, set())
    own = [m for block in blocks for m in (block.conv, block.norm) if m is not None]
    if not blocks or len({*map(id, own)}) < len(own):
        return None
    if graph.end == place:
        return tuple(blocks), False, None
    rest = Rest(graph, place, taken)
    if not rest.sound:
        return None
    layers: list[Any] = [layer for _, layer in graph.run(graph.users[place][0])]
    if len(rest.nodes) == 1 and [*map(type, layers)] == [nn.Flatten] and is_whole(layers[0]):
        return tuple(blocks), True, None
    return tuple(blocks), False, rest


def _as_it_runs(block: Block) -> tuple[ConvBlock, list[Tensor | None]]:
    """The block in its norm's mode, and weight, bias, gamma, beta. A norm on running statistics is a part of the convolution:
    gamma (W * x + b - mean) / sqrt(var + eps) + beta is one with other W and b."""
    of_conv: dict[str, Tensor | None] = getattr(block.conv, PARAMETERS)
    weight, bias = of_conv["weight"], of_conv.get("bias")
    norm = block.norm
    if norm is None:
        return block.fields, [weight, bias, None, None]
    gamma, beta = norm.weight, norm.bias
    if block.fields.norm != "batch" or norm.training or norm.running_mean is None:
        return block.fields, [weight, bias, gamma, beta]
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if gamma is None else gamma * scale
    shift = -norm.running_mean * scale if bias is None else (bias - norm.running_mean) * scale
    assert weight is not None
    folded = weight * scale[:, None, None, None], shift if beta is None else shift + beta
    return block.fields._replace(norm=None), [*folded, None, None]


def _sizes(blocks: Sequence[Block], x: Tensor) -> list[tuple[int, int]]:
    """Height and width of what each convolution gives."""
    height, width = x.shape[-2:]
    found, read = [], list[tuple[int, int]]()
    for i, (fields, *_) in enumerate(blocks):
        height, width = read[i - fields.skip] if fields.skip else (height, width)
        read.append((height, width))
        height, width = convolved_side(fields, height), convolved_side(fields, width)
        found.append((height, width))
        height, width = pooled_side(fields, height), pooled_side(fields, width)
    return found


@torch.no_grad()
def _note_statistics(
    blocks: Sequence[tuple[Block, tuple[int, int]]], images: int, means: Tensor, variances: Tensor
) -> None:
    """The running statistics of batch norms in training, from those of their batches, [T?, channels of all], task after task.
    `blocks`: each with the height and width of what it normalises."""
    channels = [block.conv.out_channels for block, _ in blocks]
    of_each = (x.reshape(-1, x.shape[-1]).split(channels, 1) for x in (means, variances))
    for (block, (height, width)), of_mean, of_var in zip(blocks, *of_each, strict=True):
        norm, count = block.norm, images * height * width
        if not norm.training or norm.running_mean is None:
            continue
        for mean, var in zip(of_mean, of_var, strict=True):
            track(getattr(norm, BUFFERS), norm.momentum, mean, var * (count / (count - 1)))

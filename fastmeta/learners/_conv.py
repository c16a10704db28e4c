"""Recognises the models that the fused conv ops run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .._route import direct
from ..inner._conv import Blocks, cores
from ..inner._mlp import in_order, listed
from ..types import ConvBlock
from ._batch_norm import has_running_statistics
from ._mlp import FusedModel, parameters_of


@dataclass
class ConvNet(FusedModel):
    """Blocks of Conv2d 3x3, a norm (BatchNorm2d on batch statistics, GroupNorm), ReLU, MaxPool2d(2), all but the first optional;
    Flatten; Linear. It runs on native kernels alone: None where they do not take a call, which the general engine then does better
    than the ops' reference."""

    blocks: Blocks

    def meta_loss(
        self, rates: Any, data: tuple[Tensor, ...], steps: int, loss: Any, first_order: bool
    ) -> Tensor | None:
        """The query loss of each task, [T]."""
        if data[0].ndim != 5:  # [n, ...] would be one task
            return None
        lr = listed(self.spread(rates), self.params)
        found = direct(
            "conv_meta_loss", (self.params, lr, *data), (steps, self.blocks, loss, first_order),
            cores(len(self.blocks), loss, 2, before="rates"),
        )  # fmt: skip
        return None if found is None else found[0]

    def predict(self, rates: Any, data: tuple[Tensor, ...], steps: int, loss: Any, first_order: bool) -> Tensor | None:
        """The outputs for the query, [T, Q, outputs], of the parameters adapted to the support."""
        if data[0].ndim != 5:
            return None
        lr = listed(self.spread(rates), self.params)
        adapted = direct(
            "conv_adapt", (self.params, lr, *data[:2]), (steps, self.blocks, loss, first_order),
            cores(len(self.blocks), loss, before="rates"),
        )  # fmt: skip
        if adapted is None:
            return None
        found = direct(
            "conv_forward", (in_order(adapted, self.params), data[2]), (self.blocks,), cores(len(self.blocks), None)
        )
        return None if found is None else found[0]


def as_convnet(model: nn.Module, adapted: int) -> ConvNet | None:
    """The network that `model` is, or None: an nn.Sequential, perhaps of such, `_seen.is_plain`, all its parameters, `adapted` of
    them, adapted and no two the same."""
    modules = _flat(model)
    blocks: list[ConvBlock] = []
    params: list[Tensor | None] = []
    while modules and type(modules[0]) is nn.Conv2d:
        block, its_params, used = _block(modules)
        if block is None:
            return None
        blocks.append(block)
        params += its_params
        modules = modules[used:]
    if not blocks or [type(m) for m in modules] != [nn.Flatten, nn.Linear] or not _is_whole(modules[0]):
        return None
    params += parameters_of(modules[1])
    here = [p is not None for p in params]
    return ConvNet(params, tuple(map(tuple, blocks))) if adapted == sum(here) and all(here[::4]) else None


def _flat(model: nn.Module) -> list[Any]:
    if type(model) is nn.Sequential:
        return [m for child in model for m in _flat(child)]
    return [model]


def _is_whole(flatten: nn.Flatten) -> bool:
    return (flatten.start_dim, flatten.end_dim) == (1, -1)


def _block(modules: list[Any]) -> tuple[ConvBlock | None, list[Tensor | None], int]:
    """The block that the modules begin with, its parameters, and how many modules it is."""
    conv, used = modules[0], 1
    plain = (conv.kernel_size, conv.dilation, conv.groups, conv.padding_mode) == ((3, 3), (1, 1), 1, "zeros")
    padding, stride = conv.padding, conv.stride
    if not plain or isinstance(padding, str) or len({*padding}) > 1 or len({*stride}) > 1:
        return None, [], 0
    kinds = [type(m) for m in modules]
    norm: str | int | None = None
    of_norm: list[Tensor | None] = [None, None]
    eps, relu, pool = 1e-5, False, 1
    if kinds[used : used + 1] in ([nn.BatchNorm2d], [nn.GroupNorm]):
        layer = modules[used]
        norm = "batch" if type(layer) is nn.BatchNorm2d else layer.num_groups
        if norm == "batch" and has_running_statistics(layer):
            return None, [], 0
        eps, of_norm, used = layer.eps, parameters_of(layer), used + 1
    if kinds[used : used + 1] == [nn.ReLU]:
        relu, used = True, used + 1
    if kinds[used : used + 1] == [nn.MaxPool2d] and _halves(modules[used]):
        pool, used = 2, used + 1
    return ConvBlock(stride[0], padding[0], norm, eps, relu, pool), [*parameters_of(conv), *of_norm], used


def _halves(pool: nn.MaxPool2d) -> bool:
    sizes = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    return all(s in (value, (value, value)) for s, value in zip(sizes, (2, 2, 0, 1), strict=True)) and not (
        pool.ceil_mode or pool.return_indices
    )

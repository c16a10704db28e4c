"""Recognises the convolutional networks that a native CPU kernel trains whole, and runs it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import _dispatch
from ._batch_norm import has_running_statistics
from ._mlp import has_parameters
from ._problem import Flat

MOST_BLOCKS = 8
NO_NORM, BATCH = -1, 0
Block = tuple[int, int, int, float, bool, int]  # stride, padding, the norm's groups or one of these, eps, relu, pool


@dataclass(frozen=True)
class ConvNet:
    """Blocks of Conv2d 3x3, a norm (BatchNorm2d on batch statistics, GroupNorm), ReLU, MaxPool2d(2), all but the first optional;
    Flatten; Linear."""

    blocks: tuple[Block, ...]
    present: tuple[bool, ...]  # weight, bias, gamma, beta of each block, weight and bias of the linear layer

    def takes(self, flat: Flat) -> bool:
        """Whether the kernel runs these tasks."""
        support_x, support_y, query_x, *query_y = flat.data
        first = flat.theta[0]
        tensors = (*flat.theta, support_x, query_x, *(r for r in flat.rates if isinstance(r, Tensor)))
        if _dispatch.forced() not in ("auto", "ext") or _kernel() is None or _dispatch.is_transformed():
            return False
        if torch.is_autocast_enabled("cpu") or (torch.is_grad_enabled() and any(x.requires_grad for x in flat.data)):
            return False
        if first.dtype not in (torch.float32, torch.float64) or any(
            x.dtype != first.dtype or not x.is_cpu for x in tensors
        ):
            return False
        targets = (support_y, *query_y)
        classes = all(y.dtype == torch.int64 and y.ndim == 2 for y in targets)
        numbers = all(y.dtype == first.dtype and y.ndim == 3 for y in targets)
        return (classes or numbers) and self._fits(support_x, query_x, first, flat.theta[-1 - self.present[-1]])

    def _fits(self, support_x: Tensor, query_x: Tensor, first: Tensor, linear: Tensor) -> bool:
        if support_x.ndim != 5 or query_x.shape[2:] != support_x.shape[2:] or support_x.shape[2] != first.shape[1]:
            return False
        examples = min(support_x.shape[1], query_x.shape[1])
        height, width = support_x.shape[3:]
        for stride, padding, groups, _, _, pool in self.blocks:
            height, width = ((side + 2 * padding - 3) // stride + 1 for side in (height, width))
            if min(height, width) < pool or (groups == BATCH and examples * height * width < 2):
                return False
            height, width = height // pool, width // pool
        return examples > 0 and linear.shape[1] % (height * width) == 0

    def run(self, flat: Flat, needs: Flat | None, steps: int, first_order: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The losses of the query, or its outputs, and the gradients of each task's loss that are wanted, [T, ...]."""
        kernel = _kernel()
        assert kernel is not None
        rates = [r if isinstance(r, Tensor) else flat.theta[0].new_tensor(r) for r in flat.rates]
        query_y = flat.data[3] if len(flat.data) == 4 else None
        theta_needs = needs.theta if needs else (False,) * len(flat.theta)
        rate_needs = needs.rates if needs else (False,) * len(rates)
        each = len(rates) > 1
        return kernel(
            self._slots(flat.theta), self._slots(rates) if each else rates, *flat.data[:3], query_y, steps, self.blocks,
            first_order, (*self._slots(theta_needs, False), *(self._slots(rate_needs, False) if each else rate_needs)),
        )  # fmt: skip

    def _slots(self, values: Sequence[Any], missing: Any = None) -> list[Any]:
        """One value for each parameter -> one for each that a network could have."""
        remaining = iter(values)
        return [next(remaining) if here else missing for here in self.present]


@functools.cache
def _kernel() -> Callable[..., tuple[Any, ...]] | None:
    try:
        from .. import _ext
    except ImportError:
        return None
    return _ext.conv_meta_loss


def as_convnet(model: nn.Module, adapted: int) -> ConvNet | None:
    """The network that `model` is, or None: an nn.Sequential, perhaps of such, `_seen.is_plain`, all its parameters, `adapted` of
    them, adapted and no two the same."""
    modules = _flat(model)
    blocks: list[Block] = []
    present: list[bool] = []
    while modules and type(modules[0]) is nn.Conv2d and len(blocks) < MOST_BLOCKS:
        block, here, used = _block(modules)
        if block is None:
            return None
        blocks.append(block)
        present += here
        modules = modules[used:]
    if not blocks or [type(m) for m in modules] != [nn.Flatten, nn.Linear] or not _is_whole(modules[0]):
        return None
    present += has_parameters(modules[1])
    return ConvNet(tuple(blocks), tuple(present)) if adapted == sum(present) and present[-2] else None


def _flat(model: nn.Module) -> list[Any]:
    if type(model) is nn.Sequential:
        return [m for child in model for m in _flat(child)]
    return [model]


def _is_whole(flatten: nn.Flatten) -> bool:
    return (flatten.start_dim, flatten.end_dim) == (1, -1)


def _block(modules: list[Any]) -> tuple[Block | None, list[bool], int]:
    """The block that the modules begin with, which parameters it has, and how many modules it is."""
    conv, used = modules[0], 1
    plain = (conv.kernel_size, conv.dilation, conv.groups, conv.padding_mode) == ((3, 3), (1, 1), 1, "zeros")
    padding, stride = conv.padding, conv.stride
    if not plain or isinstance(padding, str) or len({*padding}) > 1 or len({*stride}) > 1 or padding[0] > 2:
        return None, [], 0
    kinds = [type(m) for m in modules]
    groups, eps, of_norm, relu, pool = NO_NORM, 0.0, [False, False], False, 1
    if kinds[used : used + 1] == [nn.BatchNorm2d]:
        norm = modules[used]
        if has_running_statistics(norm):
            return None, [], 0
        groups, eps, of_norm, used = BATCH, norm.eps, has_parameters(norm), used + 1
    elif kinds[used : used + 1] == [nn.GroupNorm]:
        norm = modules[used]
        groups, eps, of_norm, used = norm.num_groups, norm.eps, has_parameters(norm), used + 1
    if kinds[used : used + 1] == [nn.ReLU]:
        relu, used = True, used + 1
    if kinds[used : used + 1] == [nn.MaxPool2d] and _halves(modules[used]):
        pool, used = 2, used + 1
    return (stride[0], padding[0], groups, eps, relu, pool), [*has_parameters(conv), *of_norm], used


def _halves(pool: nn.MaxPool2d) -> bool:
    sizes = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    return all(s in (value, (value, value)) for s, value in zip(sizes, (2, 2, 0, 1), strict=True)) and not (
        pool.ceil_mode or pool.return_indices
    )

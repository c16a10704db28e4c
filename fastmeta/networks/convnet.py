"""The models that the conv ops run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._route import natively, natively_with_gradients
from ..inner._conv import MEAN, Blocks, cores
from ..inner._network import first_with_graph, in_order, listed
from ..inner._steps import given_steps
from ..types import ConvBlock
from .batch_norm import has_running_statistics
from .blocks import conv_block, linear_block
from .chain import InnerLoop, Update
from .fused import Fused, parameters_of
from .inner_problem import Flat, Problem, check_classes
from .layers import Images, Pixels, Rows, is_whole
from .network import Data


@dataclass
class ConvNet(Fused):
    """Blocks of Conv2d, a norm (BatchNorm2d on batch statistics, GroupNorm), ReLU, MaxPool2d(2), all but the first optional; then the
    mean over pixels and Linear; or Flatten, blocks of Linear, BatchNorm1d or LayerNorm, ReLU, all but the first optional, and Linear.
    Without a convolution, examples are images of a pixel. It runs on native kernels alone: where they do not take a call, autograd does
    better than the ops' reference."""

    blocks: Blocks
    lines: tuple[bool, ...]  # which blocks are linear layers; their kernels are [..., out, in H W]
    flattens: bool = False  # whether the model makes rows of examples first
    width: int | None = None  # of such a row, where the model says it
    images: tuple[int, ...] | None = None  # the shape of an image, where the model makes images of examples

    @property
    def meta_loss_op(self) -> str:
        return "conv_meta_loss"

    def in_one_call(self, rates: Any, data: Data, return_outputs: bool) -> tuple[Tensor, ...] | None:
        images = self._images(data)
        if images is None:
            return None
        of_rates, inner = self._steps_of(rates)
        args = (self._kernels(self.params), of_rates, *images)
        found = natively("conv_meta_loss", args, (*self._static(), return_outputs, inner), self._cores(2))
        if found is not None:
            self._check_labels(data[1], data[3])
        return found if found is None else self.with_end(first_with_graph(found))

    def losses_with_gradients(
        self, rates: Any, data: Data, counts: tuple[Tensor, ...], needs: tuple[bool, ...], return_outputs: bool
    ) -> Any:
        found = self._with_gradients("value_and_grad", rates, data, counts, needs, return_outputs)
        return None if found is None else (self.with_end(found[0]), found[1])

    def losses_with_statistics(
        self, rates: Any, data: Data, counts: tuple[Tensor, ...], needs: tuple[bool, ...], return_outputs: bool
    ) -> Any:
        """`losses_with_gradients`; and means and unbiased variances of the batches that batch norms met, on the support in each step, then
        on the query, [T, K + 1, 2, channels of all]."""
        found = self._with_gradients("with_statistics", rates, data, counts, needs, return_outputs)
        return None if found is None else (self.with_end(found[0][:-1]), found[1], found[0][-1])

    def _with_gradients(
        self, kernel: str, rates: Any, data: Data, counts: tuple[Tensor, ...], needs: tuple[bool, ...], outputs: bool
    ) -> tuple[tuple[Tensor, ...], list[Tensor]] | None:
        images = self._images(data)
        if images is None:
            return None
        of_rates, inner = self._steps_of(rates)
        args, static = (self._kernels(self.params), of_rates, *images), (*self._static(), outputs, inner)
        answer = natively_with_gradients("conv_meta_loss", args, static, self._cores(2), needs, counts, kernel)
        if answer is None:
            return None
        self._check_labels(data[1], data[3])
        found, grads = answer
        lr, optimiser = self.steps_of(rates)
        of_rates = listed(lr if optimiser is None else optimiser.values()["lr"], self.params)
        asked = [x for x, need in zip((*self.params, *of_rates, *data), needs, strict=True) if need]
        return found, [g.reshape(x.shape) for g, x in zip(grads, asked, strict=True)]

    def outputs_by_ops(self, rates: Any, data: Data) -> Tensor | None:
        images = self._images(data)
        if images is None:
            return None
        of_rates, inner = self._steps_of(rates)
        args = (self._kernels(self.params), of_rates, *images[:2])
        found = natively("conv_adapt", args, (*self._static(), inner), self._cores(1))
        if found is not None:
            found = natively(
                "conv_forward", (in_order(found, self.params), images[2]), (self.blocks,), cores(len(self.blocks), None)
            )
        if found is None:
            return None
        self._check_labels(data[1])
        return self.end(found[0])

    def adapt(self, problem: Problem, flat: Flat, optimiser: Callable[[], Update] | None = None) -> list[Tensor]:
        images, found = self._images(flat.data[:2]), None
        if optimiser is None and images is not None:
            rates: Any = flat.rates[0] if problem.rate_axes == (0,) else list(flat.rates)
            args = (self._kernels(self.spread(list(flat.theta))), self._rates(rates), *images)
            found = natively("conv_adapt", args, (self.steps, self.blocks, self.task.loss, False, None), self._cores(1))
        return super().adapt(problem, flat, optimiser) if found is None else self.own_order(found)

    def gradients(self, inner: InnerLoop, theta: Sequence[Tensor], create_graph: bool) -> list[Tensor]:
        one, found = not inner.several, None
        with torch.set_grad_enabled(create_graph):
            *params, x, y = (z[None] if one else z for z in (*theta, *inner.support))
            images = self._images((x, y))
            if images is not None:
                args = (self._kernels(self.spread(params)), *images)
                of_call = cores(len(self.blocks), str(self.task.loss))
                found = natively("conv_grad", args, (self.blocks, self.task.loss), of_call)
            if found is not None:
                return [g[0] if one else g for g in self.own_order(found[1:])]
        return super().gradients(inner, theta, create_graph)

    def of_query(self, problem: Problem, theta: Sequence[Tensor], flat: Flat) -> Tensor:
        data, found, is_loss = self._images(flat.data[2:]), None, len(flat.data) > 3
        if data is not None:
            name, static = ("conv_loss", (self.blocks, self.task.loss)) if is_loss else ("conv_forward", (self.blocks,))
            args = (self._kernels(self.spread(list(theta))), *data)
            found = natively(name, args, static, cores(len(self.blocks), str(self.task.loss) if is_loss else None))
        if found is None:
            return super().of_query(problem, theta, flat)
        return found[0] if is_loss else self.end(found[0])

    def _images(self, data: Sequence[Tensor]) -> Sequence[Tensor] | None:
        """The data with images [T, n, C, H, W] every other; None: the ops do not take them."""
        if self.lines[0]:
            shapes = [x.shape for x in data[::2]]
            if any(not self._is_row(shape[2:]) for shape in shapes):
                return None
            return [x if i % 2 else x.reshape(*x.shape[:2], -1, 1, 1) for i, x in enumerate(data)]
        if self.images is not None:
            of_size = all(x.ndim > 2 and x.shape[2:].numel() == math.prod(self.images) for x in data[::2])
            return (
                [x if i % 2 else x.reshape(*x.shape[:2], *self.images) for i, x in enumerate(data)] if of_size else None
            )
        return data if all(x.ndim == 5 for x in data[::2]) else None  # [n, ...] would be one task

    def _is_row(self, shape: torch.Size) -> bool:
        """Whether an example of this shape is, or becomes, a row that the first layer takes."""
        right = len(shape) == 1 if not self.flattens else len(shape) > (self.width is not None)
        return right and self.width in (None, shape.numel())

    def images_of(self, shape: torch.Size) -> torch.Size | None:
        """[n, ...] -> [n, C, H, W], as the ops take them."""
        if self.images is not None:
            return torch.Size((shape[0], *self.images)) if shape[1:].numel() == math.prod(self.images) else None
        if not self.lines[0]:
            return shape if len(shape) == 4 else None
        return torch.Size((shape[0], shape[1:].numel(), 1, 1)) if self._is_row(shape[1:]) else None

    def _kernels(self, values: Any) -> Any:
        """A list in the structure of `params` with the weights of linear layers, or rates for each of their numbers, as kernels."""
        if not any(self.lines) or not isinstance(values, list):
            return values
        found = list(values)
        for i, x in enumerate(values[:-2:4]):
            if self.lines[i] and isinstance(x, Tensor) and x.ndim > 1:
                side = self.blocks[i][7]
                found[4 * i] = x.unflatten(-1, (-1, side, side))
        return found

    def own_order(self, values: Sequence[Any]) -> list[Any]:
        each = in_order(values, self.params)
        for i, is_linear in enumerate(self.lines):
            if is_linear and each[4 * i].ndim > 3:  # a kernel, or rates for each of its numbers
                each[4 * i] = each[4 * i].flatten(-3)
        return super().own_order([x for x in each if x is not None])

    def _steps_of(self, rates: Any) -> tuple[Any, Any]:
        """What the ops take for rates, and their last static argument."""
        lr, optimiser = self.steps_of(rates)
        if optimiser is not None:
            lr, inner = given_steps(self.learner, lr, False, optimiser)
            return listed(self._kernels(lr), self.params), inner
        return listed(self._kernels(lr), self.params), None

    def _rates(self, rates: Any) -> Any:
        return listed(self._kernels(self.spread(rates)), self.params)

    def _cores(self, examples: int) -> tuple[Any, ...]:
        return cores(len(self.blocks), str(self.task.loss), examples, before="rates")

    def _static(self) -> tuple[Any, ...]:
        return self.steps, self.blocks, self.task.loss, self.first_order

    def _check_labels(self, *targets: Tensor) -> None:
        """What `direct` leaves out."""
        if self.classes is not None:
            check_classes(self.learner, self.classes, *targets)


Parts = tuple[list[Tensor | None], Blocks, tuple[bool, ...], bool, int | None, tuple[int, ...] | None]


def convnet_parts(layers: Sequence[Any]) -> Parts | None:
    """What makes layers one after the other a ConvNet, or None."""
    modules = list(layers)
    blocks: list[ConvBlock] = []
    params: list[Tensor | None] = []
    flattens, width, images = False, None, None
    if modules and type(modules[0]) is Images:
        images, modules = modules[0].shape, modules[1:]
        if not modules or type(modules[0]) is not nn.Conv2d:
            return None
    while modules and type(modules[0]) is nn.Conv2d:
        block, its_params, used = conv_block(modules)
        if block is None or (block.norm == "batch" and has_running_statistics(modules[1])):
            return None
        blocks.append(block)
        params += its_params
        modules = modules[used:]
    convolutions, channels = len(blocks), None
    if blocks:
        if params[-4] is None:
            return None
        channels = params[-4].shape[0]
    by_mean = bool(blocks) and len(modules) > 1 and is_mean(*modules[:2])
    if by_mean:
        if blocks[-1].pool != 1:
            return None
        blocks[-1], modules = blocks[-1]._replace(pool=MEAN), modules[1:]
    if modules and type(modules[0]) is not nn.Linear:
        flattens, width = True, getattr(modules[0], "width", None)
        if len(modules) < 2 or type(modules[1]) is not nn.Linear or not flattens_to(modules[0], modules[1]):
            return None
        modules = modules[1:]
    elif blocks and not by_mean:
        return None
    while len(modules) > 1:
        if by_mean:
            return None
        found = linear_block(modules, channels if len(blocks) == convolutions else None)
        if found is None:
            return None
        block, its_params, used = found
        blocks.append(block)
        params += its_params
        modules = modules[used:]
    if not blocks or not modules or type(modules[0]) is not nn.Linear:
        return None
    params += parameters_of(modules[0])
    lines = tuple(i >= convolutions for i in range(len(blocks)))
    if any(p is None for p in params[::4]):
        return None
    return params, tuple(map(tuple, blocks)), lines, flattens, width, images


def is_mean(layer: nn.Module, after: nn.Module) -> bool:
    """Whether it makes the mean of each channel over all pixels, for `after`."""
    if type(layer) is nn.AdaptiveAvgPool2d:
        return layer.output_size in (1, (1, 1)) and type(after) is not nn.Linear
    return type(layer) is Pixels


def flattens_to(layer: nn.Module, before: nn.Linear) -> bool:
    """Whether it makes the rows that `before` takes."""
    if isinstance(layer, Rows):
        return layer.width == before.in_features
    return isinstance(layer, nn.Flatten) and is_whole(layer)

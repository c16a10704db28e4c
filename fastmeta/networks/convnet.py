"""The models that the conv ops run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._route import natively, natively_with_gradients
from ..inner._conv import Blocks, cores
from ..inner._network import first_with_graph, in_order, listed
from ..inner._steps import given_steps
from ..types import ConvBlock
from .batch_norm import has_running_statistics
from .blocks import conv_block
from .chain import InnerLoop, Update
from .fused import Fused, parameters_of
from .inner_problem import Flat, Problem, check_classes
from .layers import Rows, is_whole
from .network import Data


@dataclass
class ConvNet(Fused):
    """Blocks of Conv2d 3x3, a norm (BatchNorm2d on batch statistics, GroupNorm), ReLU, MaxPool2d(2), all but the first optional;
    Flatten; Linear. It runs on native kernels alone: where they do not take a call, autograd does better than the ops' reference."""

    blocks: Blocks

    @property
    def meta_loss_op(self) -> str:
        return "conv_meta_loss"

    def in_one_call(self, rates: Any, data: Data, return_outputs: bool) -> tuple[Tensor, ...] | None:
        if data[0].ndim != 5:  # [n, ...] would be one task
            return None
        of_rates, inner = self._steps_of(rates)
        args, static = (self.params, of_rates, *data), (*self._static(), return_outputs, inner)
        found = natively("conv_meta_loss", args, static, self._cores(2))
        if found is not None:
            self._check_labels(data[1], data[3])
        return found if found is None else first_with_graph(found)

    def losses_with_gradients(
        self, rates: Any, data: Data, counts: tuple[Tensor, ...], needs: tuple[bool, ...], return_outputs: bool
    ) -> Any:
        of_rates, inner = self._steps_of(rates)
        args, static = (self.params, of_rates, *data), (*self._static(), return_outputs, inner)
        found = natively_with_gradients("conv_meta_loss", args, static, self._cores(2), needs, counts)
        if found is not None:
            self._check_labels(data[1], data[3])
        return found

    def outputs_by_ops(self, rates: Any, data: Data) -> Tensor | None:
        if data[0].ndim != 5:
            return None
        of_rates, inner = self._steps_of(rates)
        args = (self.params, of_rates, *data[:2])
        found = natively("conv_adapt", args, (*self._static(), inner), self._cores(1))
        if found is not None:
            found = natively(
                "conv_forward", (in_order(found, self.params), data[2]), (self.blocks,), cores(len(self.blocks), None)
            )
        if found is None:
            return None
        self._check_labels(data[1])
        return found[0]

    def adapt(self, problem: Problem, flat: Flat, optimiser: Callable[[], Update] | None = None) -> list[Tensor]:
        x, y = flat.data[:2]
        found = None
        if optimiser is None and x.ndim == 5:
            rates: Any = flat.rates[0] if problem.rate_axes == (0,) else list(flat.rates)
            args = (self.spread(list(flat.theta)), self._rates(rates), x, y)
            found = natively("conv_adapt", args, (self.steps, self.blocks, self.task.loss, False, None), self._cores(1))
        return super().adapt(problem, flat, optimiser) if found is None else list(found)

    def gradients(self, inner: InnerLoop, theta: Sequence[Tensor], create_graph: bool) -> list[Tensor]:
        x, y = inner.support
        found = None
        if inner.several and x.ndim == 5:
            with torch.set_grad_enabled(create_graph):
                args, of_call = (self.spread(list(theta)), x, y), cores(len(self.blocks), str(self.task.loss))
                found = natively("conv_grad", args, (self.blocks, self.task.loss), of_call)
        return super().gradients(inner, theta, create_graph) if found is None else list(found[1:])

    def _steps_of(self, rates: Any) -> tuple[Any, Any]:
        """What the ops take for rates, and their last static argument."""
        lr, optimiser = self.steps_of(rates)
        if optimiser is not None:
            lr, inner = given_steps(self.learner, lr, False, optimiser)
            return listed(lr, self.params), inner
        return listed(lr, self.params), None

    def _rates(self, rates: Any) -> Any:
        return listed(self.spread(rates), self.params)

    def _cores(self, examples: int) -> tuple[Any, ...]:
        return cores(len(self.blocks), str(self.task.loss), examples, before="rates")

    def _static(self) -> tuple[Any, ...]:
        return self.steps, self.blocks, self.task.loss, self.first_order

    def _check_labels(self, *targets: Tensor) -> None:
        """What `direct` leaves out."""
        if self.classes is not None:
            check_classes(self.learner, self.classes, *targets)


def convnet_parts(layers: Sequence[Any]) -> tuple[list[Tensor | None], Blocks] | None:
    """What makes layers one after the other a ConvNet, or None."""
    modules = list(layers)
    blocks: list[ConvBlock] = []
    params: list[Tensor | None] = []
    while modules and type(modules[0]) is nn.Conv2d:
        block, its_params, used = conv_block(modules)
        if block is None or (block.norm == "batch" and has_running_statistics(modules[1])):
            return None
        blocks.append(block)
        params += its_params
        modules = modules[used:]
    if not blocks or len(modules) != 2 or type(modules[1]) is not nn.Linear or not flattens(modules[0], modules[1]):
        return None
    params += parameters_of(modules[1])
    return (params, tuple(map(tuple, blocks))) if all(p is not None for p in params[::4]) else None


def flattens(layer: nn.Module, before: nn.Linear) -> bool:
    """Whether it makes the rows that `before` takes."""
    if isinstance(layer, Rows):
        return layer.width == before.in_features
    return isinstance(layer, nn.Flatten) and is_whole(layer)

"""The models that the mlp ops run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._ask import OF_SUPPORT, ask
from .._route import natively_with_gradients
from ..inner._network import listed, refuse_labels
from ..inner._steps import given_steps
from ..inner.mlp_adapt import mlp_adapt
from ..inner.mlp_forward import mlp_forward
from ..inner.mlp_grad import mlp_grad
from ..inner.mlp_meta_loss import CORES, mlp_meta_loss_and_outputs
from .chain import InnerLoop, Update
from .functions import Sine
from .fused import Fused, parameters_of
from .inner_problem import Flat, Problem
from .layers import Rows, is_whole
from .network import Data

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.GELU: "gelu",
    nn.Sigmoid: "sigmoid",
    nn.Identity: "identity",
    nn.SiLU: "silu",
    nn.LeakyReLU: "leaky_relu",
    Sine: "sine",
}


@dataclass
class Mlp(Fused):
    """Flatten, Linear and one kind of activation in turn; Flatten may be absent. Its ops run on every device and under transforms."""

    activation: str
    flattens: bool
    width: int | None = None  # of an example, where the model flattens to so many

    @property
    def meta_loss_op(self) -> str:
        return "mlp_meta_loss"

    def in_one_call(self, rates: Any, data: Data, return_outputs: bool) -> tuple[Tensor, ...] | None:
        support_x, support_y, query_x, query_y = data
        if not self.takes(support_x, query_x):
            return None
        lr, optimiser = self.steps_of(rates)
        found = ask(
            self.learner, mlp_meta_loss_and_outputs, {}, self.params, lr, self.flat(support_x), support_y,
            self.flat(query_x), query_y, steps=self.steps, activation=self.activation, loss=self.task.loss,
            first_order=self.first_order, optimiser=optimiser, return_outputs=return_outputs,
        )  # fmt: skip
        return self.with_end(found)

    def losses_with_gradients(
        self, rates: Any, data: Data, counts: tuple[Tensor, ...], needs: tuple[bool, ...], return_outputs: bool
    ) -> Any:
        support_x, support_y, query_x, query_y = data
        lr, optimiser = self.steps_of(rates)
        inner = None
        if optimiser is not None:
            lr, inner = given_steps(self.learner, lr, False, optimiser)
        of_rates = listed(lr, self.params)
        args = self.params, of_rates, self.flat(support_x), support_y, self.flat(query_x), query_y
        loss: Any = self.task.loss
        static = (self.steps, self.activation, loss, self.first_order, return_outputs, inner)
        found = natively_with_gradients("mlp_meta_loss", args, static, CORES[loss], needs, counts)
        if found is not None:
            refuse_labels("mlp_meta_loss", loss, self.params, support_y=support_y, query_y=query_y)
            return self.with_end(found[0]), found[1]
        return None

    def outputs_by_ops(self, rates: Any, data: Data) -> Tensor | None:
        support_x, support_y, query_x = data
        if not self.takes(support_x, query_x):
            return None
        lr, optimiser = self.steps_of(rates)
        params = ask(
            self.learner, mlp_adapt, OF_SUPPORT, self.params, lr, self.flat(support_x), support_y, steps=self.steps,
            activation=self.activation, loss=self.task.loss, first_order=self.first_order, optimiser=optimiser,
        )  # fmt: skip
        x = self.flat(query_x)
        return self.end(ask(self.learner, mlp_forward, {"inputs": "query_x"}, params, x, activation=self.activation))

    def adapt(self, problem: Problem, flat: Flat, optimiser: Callable[[], Update] | None = None) -> list[Tensor]:
        x, y, query_x = flat.data[:3]
        if optimiser is not None or not self.takes(x, query_x):
            return super().adapt(problem, flat, optimiser)
        rates = flat.rates[0] if problem.rate_axes == (0,) else self.spread(list(flat.rates))
        adapted = ask(
            self.learner, mlp_adapt, OF_SUPPORT, self.spread(list(flat.theta)), rates, self.flat(x), y, steps=self.steps,
            activation=self.activation, loss=self.task.loss,
        )  # fmt: skip
        return self.own_order([p for p in adapted if p is not None])

    def gradients(self, inner: InnerLoop, theta: Sequence[Tensor], create_graph: bool) -> list[Tensor]:
        x, y = inner.support
        if not inner.several or not self.takes(x, x):
            return super().gradients(inner, theta, create_graph)
        with torch.set_grad_enabled(create_graph):
            _, grads = ask(
                self.learner, mlp_grad, OF_SUPPORT, self.spread(list(theta)), self.flat(x), y, activation=self.activation,
                loss=self.task.loss,
            )  # fmt: skip
        return self.own_order([g for g in grads if g is not None])

    def takes(self, support_x: Tensor, query_x: Tensor) -> bool:
        """Whether the model maps these inputs `[T, n, ...]` example by example."""
        if self.width is not None:
            return all(x.ndim > 3 and x.shape[2:].numel() == self.width for x in (support_x, query_x))
        return (self.flattens and min(support_x.ndim, query_x.ndim) > 2) or support_x.ndim == query_x.ndim == 3

    def flat(self, x: Tensor) -> Tensor:
        return x.flatten(2) if self.flattens else x


def _has_own_option(layer: nn.Module) -> bool:
    """Whether it is not what its activation's name means."""
    if type(layer) is nn.GELU:
        return layer.approximate != "none"
    return type(layer) is nn.LeakyReLU and layer.negative_slope != 0.01


def mlp_parts(layers: Sequence[Any]) -> tuple[list[Tensor | None], str, bool, int | None] | None:
    """What makes layers one after the other an Mlp, or None: Flatten?, Linear, activation, Linear, ..."""
    width = layers[0].width if isinstance(layers[0], Rows) else None
    flattens = width is not None or type(layers[0]) is nn.Flatten
    if type(layers[0]) is nn.Flatten and not is_whole(layers[0]):
        return None
    layers = layers[flattens:]
    linears, between = list(layers[::2]), list(layers[1::2])
    if len(linears) != len(between) + 1 or not all(type(m) is nn.Linear for m in linears):
        return None
    kinds = {ACTIVATIONS.get(type(m)) for m in between}
    if len(kinds) > 1 or None in kinds or any(map(_has_own_option, between)):
        return None
    params = [p for m in linears for p in parameters_of(m)]
    if any(p is None for p in params[::2]):
        return None
    return params, next(iter(kinds), None) or "relu", flattens, width

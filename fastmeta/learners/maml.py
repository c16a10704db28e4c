from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.mlp_adapt import mlp_adapt
from ..ops.mlp_forward import mlp_forward
from ..ops.mlp_meta_loss import mlp_meta_loss
from ..reference.mlp_loss import task_loss
from ._engine import adapted_outputs
from ._episode import check_episode, refuse_running_statistics
from ._mlp import as_mlp

LOSSES = ("cross_entropy", "mse")


class MAML(nn.Module):
    r"""theta_{k+1} = theta_k - lr * dL_support(theta_k)/dtheta, `steps` times from `model`'s parameters; then predict the query.

    `model`: any module `[n, ...] -> [n, ...]`. An `nn.Sequential` of Flatten, Linear and one kind of activation (ReLU, Tanh,
    GELU, Sigmoid, Identity) runs all its tasks in one native call (`mlp_meta_loss`); any other model runs task by task
    through autograd. Both are exact. Parameters with requires_grad=False are not adapted. Batch norm must use batch statistics.
    `lr`: a number, or a tensor, 0-dim or `[steps]`; as an `nn.Parameter` it is learned.
    `loss`: "cross_entropy" (label -100: left out), "mse", or a function (outputs, targets) of one task -> scalar.
    `first_order`: leave out the second derivatives (FOMAML).

        learner(support_x, support_y, query_x)        # [T, S, ...], [T, S], [T, Q, ...] -> outputs of the adapted models [T, Q, ...]
        learner.loss(support_x, support_y, query_x, query_y)  # -> query loss of each task [T]

    Source: Finn et al. 2017, arXiv:1703.03400.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float | Tensor = 0.01,
        steps: int = 1,
        *,
        loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        first_order: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not callable(loss) and loss not in LOSSES:
            raise ValueError(f"{name}: loss must be 'cross_entropy', 'mse' or a function, got {loss!r}")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ValueError(f"{name}: steps must be a whole number, 0 or more, got {steps!r}")
        refuse_running_statistics(name, model)
        self.model, self.steps, self.inner_loss, self.first_order = model, steps, loss, first_order
        self.lr: Any = lr
        self._mlp = as_mlp(model) if isinstance(loss, str) else None

    def rates(self) -> Any:
        """The inner learning rates: one for all parameters, or a list with one for each adapted parameter."""
        return self.lr

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        check_episode(type(self).__name__, support_x, support_y, query_x)
        if self._mlp is None or not self._mlp.takes(support_x, query_x):
            return self._general(support_x, support_y, query_x)
        mlp = self._mlp
        params = mlp_adapt(
            mlp.params(), mlp.spread(self.rates()), mlp.flat(support_x), support_y, steps=self.steps,
            activation=mlp.activation, loss=str(self.inner_loss), first_order=self.first_order,
        )  # fmt: skip
        return mlp_forward(params, mlp.flat(query_x), activation=mlp.activation)

    def loss(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        """The adapted model's loss on the query of each task, [T]."""
        check_episode(type(self).__name__, support_x, support_y, query_x, query_y)
        if self._mlp is None or not self._mlp.takes(support_x, query_x):
            outputs = self._general(support_x, support_y, query_x)
            return torch.stack([self._task_loss(o, y) for o, y in zip(outputs, query_y, strict=True)])
        mlp = self._mlp
        return mlp_meta_loss(
            mlp.params(), mlp.spread(self.rates()), mlp.flat(support_x), support_y, mlp.flat(query_x), query_y,
            steps=self.steps, activation=mlp.activation, loss=str(self.inner_loss), first_order=self.first_order,
        )  # fmt: skip

    def _general(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        return adapted_outputs(
            self.model, self.rates(), support_x, support_y, query_x,
            steps=self.steps, loss=self._task_loss, first_order=self.first_order,
        )  # fmt: skip

    def _task_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (
            self.inner_loss(outputs, targets)
            if callable(self.inner_loss)
            else task_loss(outputs, targets, self.inner_loss)
        )

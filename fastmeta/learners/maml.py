from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ..ops.mlp_adapt import mlp_adapt
from ..ops.mlp_forward import mlp_forward
from ..ops.mlp_meta_loss import mlp_meta_loss
from ..reference.mlp_loss import task_loss
from ._batch_norm import refuse_running_statistics
from ._conv import as_convnet
from ._engine import on_query
from ._episode import check_episode
from ._learner import Learner
from ._mlp import as_mlp
from ._problem import Problem, Task, adapted_names, problem_of

LOSSES = ("cross_entropy", "mse")


def check_loop(name: str, steps: int, task_chunk: int | None) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"{name}: steps must be a whole number, 0 or more, got {steps!r}")
    if task_chunk is not None and (isinstance(task_chunk, bool) or not isinstance(task_chunk, int) or task_chunk < 1):
        raise ValueError(f"{name}: task_chunk must be None or a whole number, 1 or more, got {task_chunk!r}")


class MAML(Learner):
    r"""theta_{k+1} = theta_k - lr * dL_support(theta_k)/dtheta, `steps` times from `model`'s parameters; then predict the query.

    `model`: any module `[n, ...] -> [n, ...]`. An `nn.Sequential` of Flatten, Linear and one kind of activation (ReLU, Tanh,
    GELU, Sigmoid, Identity) runs all its tasks in one native call (`mlp_meta_loss`), and on a CPU so does `loss` of one of
    Conv2d 3x3, BatchNorm2d or GroupNorm, ReLU, MaxPool2d(2) in blocks, Flatten, Linear. Any other model runs through autograd,
    several tasks at once where torch.vmap can and is faster, else one by one; the meta-gradient comes from a chain of
    Hessian-vector products, so memory does not grow with `steps` but for the parameters before each. All ways are exact, with
    random layers and batch norm too, which must use batch statistics (`fastmeta.use_batch_statistics`).
    `lr`: a number, or a tensor, 0-dim or `[steps]`; as an `nn.Parameter` it is learned.
    `loss`: "cross_entropy" (label -100: left out), "mse", or a function or module (outputs, targets) of one task -> scalar; a
    module's parameters are trained.
    `first_order`: leave out the second derivatives (FOMAML).
    `adapt`: names of the parameters that change in the inner loop, or of modules that hold them; the others are trained, but
    stay. None: all. Parameters that have requires_grad=False here are neither adapted nor trained.
    `loss_weights`: numbers w_1 .. w_steps; the query loss is then sum_k w_k L_query(theta_k), MAML++'s multi-step loss, in the
    general engine. An attribute: assign it as training goes on, None for the last step alone.
    `task_chunk`: the most tasks at once in the general engine, to bound its memory. None: all of them.

        learner(support_x, support_y, query_x)        # [T, S, ...], [T, S], [T, Q, ...] -> outputs of the adapted models [T, Q, ...]
        learner.loss(support_x, support_y, query_x, query_y)  # -> query loss of each task [T]

    Sources: Finn et al. 2017, arXiv:1703.03400; Antoniou et al. 2019, arXiv:1810.09502.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float | Tensor = 0.01,
        steps: int = 1,
        *,
        loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        first_order: bool = False,
        adapt: Sequence[str] | None = None,
        loss_weights: Sequence[float] | None = None,
        task_chunk: int | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not callable(loss) and loss not in LOSSES:
            raise ValueError(f"{name}: loss must be 'cross_entropy', 'mse' or a function, got {loss!r}")
        check_loop(name, steps, task_chunk)
        refuse_running_statistics(name, model)
        self.model, self.steps, self.inner_loss, self.first_order = model, steps, loss, first_order
        self.loss_weights = loss_weights
        self.adapted, self.task_chunk = adapted_names(name, model, adapt), task_chunk
        self.lr: Any = lr
        whole_loss = functools.partial(task_loss, loss=loss) if isinstance(loss, str) else loss
        self._task = (Task(model, whole_loss),)  # in a tuple: not a submodule
        adapts_all = len(self.adapted) == len(list(model.parameters()))
        named = isinstance(loss, str) and adapts_all
        self._mlp, self._net = as_mlp(model) if named else None, as_convnet(model) if named else None

    def rates(self) -> Any:
        """The inner learning rates: one for all parameters, or a list with one for each adapted parameter."""
        return self.lr

    def _predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        check_episode(type(self).__name__, support_x, support_y, query_x)
        if self._mlp is None or not self._mlp.takes(support_x, query_x):
            return on_query(self._problem(), self.rates(), support_x, support_y, query_x)
        mlp = self._mlp
        params = mlp_adapt(
            mlp.params(), mlp.spread(self.rates()), mlp.flat(support_x), support_y, steps=self.steps,
            activation=mlp.activation, loss=str(self.inner_loss), first_order=self.first_order,
        )  # fmt: skip
        return mlp_forward(params, mlp.flat(query_x), activation=mlp.activation)

    def loss(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        """The adapted model's loss on the query of each task, [T]."""
        check_episode(type(self).__name__, support_x, support_y, query_x, query_y)
        if self.loss_weights is not None or self._mlp is None or not self._mlp.takes(support_x, query_x):
            return on_query(self._problem(), self.rates(), support_x, support_y, query_x, query_y)
        mlp = self._mlp
        return mlp_meta_loss(
            mlp.params(), mlp.spread(self.rates()), mlp.flat(support_x), support_y, mlp.flat(query_x), query_y,
            steps=self.steps, activation=mlp.activation, loss=str(self.inner_loss), first_order=self.first_order,
        )  # fmt: skip

    def _weights(self) -> tuple[float, ...] | None:
        if self.loss_weights is None:
            return None
        weights = tuple(float(w) for w in self.loss_weights)
        if len(weights) != self.steps or not weights or not all(math.isfinite(w) for w in weights):
            raise ValueError(
                f"{type(self).__name__}: loss_weights must be a finite number for each of at least one step, "
                f"got {list(weights)} for {self.steps} steps"
            )
        return weights

    def _problem(self) -> Problem:
        """What the general engine solves."""
        return problem_of(
            type(self).__name__, self._task[0], self.adapted,
            rates=self.rates(), steps=self.steps, first_order=self.first_order, task_chunk=self.task_chunk,
            weights=self._weights(), net=self._net if self.loss_weights is None else None,
        )  # fmt: skip

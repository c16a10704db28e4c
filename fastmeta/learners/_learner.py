"""What all learners share: one call that predicts or, with the query's targets, gives the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from .._torch import takes_data_of
from ..networks.encoder import Encoder
from ..networks.recognise import Plan
from ..networks.users_model import Loss, Task
from ._episode import check_episode, of_no_tasks


class Learner(nn.Module):
    """learner(support_x, support_y, query_x) predicts the query; learner(support_x, support_y, query_x, query_y) is the loss [T].

    So the loss can be had from forward(), the only call that wrappers like DistributedDataParallel and module hooks see.
    """

    _encoder: Encoder | None = None

    if TYPE_CHECKING:  # torch.nn.Module's takes and gives Any

        def __call__(
            self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor | None = None
        ) -> Tensor: ...

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor | None = None) -> Tensor:
        if query_y is not None:
            return self.loss(support_x, support_y, query_x, query_y)
        check_episode(self._name, self._loss, support_x, support_y, query_x)
        if not support_x.shape[0]:
            return of_no_tasks([*query_x.shape[:2], *self._outputs_of(query_x)], self._reached(support_x, query_x))
        return self._predict(support_x, support_y, query_x)

    @overload
    def loss(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor,
        *,
        return_outputs: Literal[False] = False,
    ) -> Tensor: ...
    @overload
    def loss(
        self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor, *, return_outputs: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...
    def loss(
        self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor, *, return_outputs: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The loss on the query of each task, [T]. With `return_outputs` also what `learner(support_x, support_y, query_x)` gives,
        without a graph and from the same pass: training accuracy for nothing. iMAML and Reptile make a second pass for it."""
        if query_y is None:
            raise TypeError(f"{self._name}: query_y must be a tensor, got NoneType")
        check_episode(self._name, self._loss, support_x, support_y, query_x, query_y)
        if not support_x.shape[0]:
            losses = of_no_tasks([0], self._reached(support_x, support_y, query_x, query_y))
            return (losses, self(support_x, support_y, query_x).detach()) if return_outputs else losses
        if return_outputs:
            return self._losses_and_outputs(support_x, support_y, query_x, query_y)
        return self._losses(support_x, support_y, query_x, query_y)

    @overload
    def backward(
        self,
        support_x: Tensor,
        support_y: Tensor,
        query_x: Tensor,
        query_y: Tensor,
        *,
        return_outputs: Literal[False] = False,
    ) -> Tensor: ...
    @overload
    def backward(
        self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor, *, return_outputs: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...
    def backward(
        self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor, *, return_outputs: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The losses [T], without a graph; adds the gradient of their mean to `.grad` of what it depends on, as
        `loss(...).mean().backward()` does. Where the native kernels run a whole inner loop, autograd takes no part.

        `return_outputs`: as in `loss`. For training loops of one process: DistributedDataParallel and FSDP average gradients in a
        backward of their own, so there call the wrapped learner and `.mean().backward()`. Hooks on parameters are called. Errors:
        RuntimeError under torch.no_grad; else as `loss`.
        """
        if not torch.is_grad_enabled():
            raise RuntimeError(f"{self._name}: backward must run with grad mode on, got it off")
        found = self._backward(support_x, support_y, query_x, query_y, return_outputs=return_outputs)
        losses = found[0] if return_outputs else found
        if losses.requires_grad:
            (losses.mean() if losses.numel() else losses.sum()).backward()
        return (losses.detach(), found[1]) if return_outputs else losses.detach()

    def _backward(self, *data: Tensor, return_outputs: bool) -> Any:
        """What `loss` gives; the losses without a graph where their gradient has been taken."""
        return self.loss(*data, return_outputs=True) if return_outputs else self.loss(*data)

    def _losses_and_outputs(self, *data: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        raise NotImplementedError

    def _losses(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        raise NotImplementedError

    def _outputs_of(self, query_x: Tensor) -> Sequence[int]:
        """The shape of the outputs for one example of a query without tasks."""
        raise NotImplementedError

    @property
    def _name(self) -> str:
        return type(self).__name__.removeprefix("FSDP")  # which fully_shard puts before it

    @property
    def _loss(self) -> Any:
        """What the targets are for: "cross_entropy", "mse", or a function."""
        return "cross_entropy"

    def _reached(self, *data: Tensor) -> list[Tensor]:
        """What a loss depends on, a parameter first."""
        own = [x for x in self.__dict__.values() if isinstance(x, Tensor)]
        return [*(p for p in self.parameters()), *own, *data]

    def __getstate__(self) -> dict[str, Any]:
        """Without what was seen of networks."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_encoder", "_kept")}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Learner:
        """Of what `.to()`, `.double()` and their kin do to parameters, tensors among the attributes get their share: rates and
        temperatures that are not learned. One that carries a graph stays."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, x in self.__dict__.items():
            if isinstance(x, Tensor) and x.grad_fn is None:
                moved = fn(x.detach())
                if x.requires_grad and takes_data_of(x, moved):
                    x.data = moved  # whoever trains it holds this very tensor
                    if x.grad is not None:
                        x.grad = fn(x.grad)
                else:
                    self.__dict__[name] = moved.requires_grad_(x.requires_grad)
        return self


class NetworkLearner(Learner):
    """A learner of a network, which is recognised anew where it or a setting has changed since the last call."""

    _kept: Plan | None = None

    def __init__(self) -> None:
        super().__init__()
        self._trained: dict[str, bool] = {}  # which parameters were, when no tensors stood in for them
        self._task: tuple[Task, ...] = ()  # in a tuple: not a submodule

    def _settings(self) -> tuple[Any, ...]:
        """What, beside the network, the plan depends on: the same objects every time, as long as none is assigned."""
        raise NotImplementedError

    def _look(self, settings: tuple[Any, ...]) -> Plan:
        raise NotImplementedError

    def _task_of(self, model: nn.Module, loss: str | Loss) -> Task:
        """The last one, if it is of this model and this loss: torch.compile cannot make one."""
        if not self._task or self._task[0].model is not model or self._task[0].loss is not loss:
            self._task = (Task(self._name, model, loss),)
        return self._task[0]

    def _plan(self) -> Plan:
        settings = self._settings()
        if torch.compiler.is_compiling():
            return self._look(settings)
        kept = self._kept
        if kept is not None and kept.holds(settings):
            return kept
        plan = self._look(settings)
        if plan.lasts:
            self._kept, self._trained = plan, plan.trained
        return plan

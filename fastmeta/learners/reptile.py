from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..networks.inner_problem import Flat, Problem
from ..networks.network import refuse
from ..networks.recognise import Plan
from ..types import Loss
from . import _arguments
from .maml import MAML

OPTIMISERS = ("sgd", "adam")


class Reptile(MAML):
    r"""theta <- theta + eps mean_t(phi_t - theta), phi_t = `steps` inner steps on the support of task t from theta.

    `learner.loss(...).mean().backward()` gives every parameter the gradient mean_t(theta - phi_t). One step of torch.optim.SGD
    with lr = eps is the update above; any other optimiser may take its place. The value of the loss is that of the query after
    the inner steps. The gradient is not the derivative of that value: task t's is theta - phi_t times the gradient of its loss,
    and depends on nothing else. The paper trains on the support alone: give it all examples as support.

    `optimiser`: of the inner steps: "sgd" or, as in the paper, "adam" (beta_1 = 0, beta_2 = 0.999, eps = 1e-8), which starts
    anew in every task. `model`, `lr`, `loss`, `adapt`, `task_chunk`: as in `MAML`; `lr` is not learned. Parameters outside
    `adapt` get no gradient. A derivative of the gradient raises RuntimeError, as do torch.func, forward-mode AD and
    torch.compile(fullgraph=True).

        # support_x [T, S, ...], support_y [T, S], query_x [T, Q, ...]
        learner(support_x, support_y, query_x)  # outputs, without a graph
        learner.loss(support_x, support_y, query_x, query_y)  # query loss [T]

    Source: Nichol et al. 2018, arXiv:1803.02999.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.01,
        steps: int = 5,
        *,
        optimiser: Literal["sgd", "adam"] = "sgd",
        loss: Loss | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        adapt: Sequence[str] | None = None,
        task_chunk: int | None = None,
    ) -> None:
        lr = _arguments.number(type(self).__name__, "lr", lr)
        self.optimiser = optimiser
        super().__init__(model, lr, steps, loss=loss, first_order=True, adapt=adapt, task_chunk=task_chunk)

    def _settings(self) -> tuple[Any, ...]:
        return *super()._settings(), self.optimiser

    def _look(self, settings: tuple[Any, ...]) -> Plan:
        _arguments.word(self._name, "optimiser", settings[-1], OPTIMISERS)
        return super()._look(settings)

    def _predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._on_query(support_x, support_y, query_x)

    def _losses(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        return self._on_query(support_x, support_y, query_x, query_y)

    def _losses_and_outputs(self, *data: Tensor) -> tuple[Tensor, Tensor]:
        return self._losses(*data), self._predict(*data[:3])

    def _on_query(self, support_x: Tensor, support_y: Tensor, *query: Tensor) -> Tensor:
        network, lr = self._plan().network, _arguments.number(self._name, "lr", self.lr)

        def evaluated(problem: Problem, flat: Flat) -> Tensor:
            with torch.no_grad():
                phi = network.adapt(problem, flat, Adam if self.optimiser == "adam" else None)
                found = network.of_query(problem, phi, flat)
            return Towards.apply(found, len(phi), *flat.theta, *phi) if torch.is_grad_enabled() else found

        found: Tensor = network.run(evaluated, refuse, lr, (support_x, support_y, *query))
        return found


class Adam:
    """theta - rate g / (sqrt(v / (1 - beta_2^k)) + eps), v the running mean of g^2 since the first step."""

    def __init__(self, beta: float = 0.999, eps: float = 1e-8) -> None:
        self.beta, self.eps, self.steps = beta, eps, 0
        self.squares: list[Any] = []

    def __call__(self, theta: Sequence[Tensor], grads: Sequence[Tensor], rate: float) -> list[Tensor]:
        self.steps += 1
        before = self.squares or [torch.zeros_like(g) for g in grads]
        self.squares = [self.beta * v + (1 - self.beta) * g * g for v, g in zip(before, grads, strict=True)]
        unbiased = [(v / (1 - self.beta**self.steps)).sqrt() + self.eps for v in self.squares]
        return [p - rate * g / v for p, g, v in zip(theta, grads, unbiased, strict=True)]


class Towards(torch.autograd.Function):
    """losses [T], theta, phi [T, ...] -> losses, with the gradient theta - phi_t of task t to theta."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.count = count
        ctx.save_for_backward(*tensors)
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, dlosses: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("Reptile: the meta-gradient must be of first order, got create_graph=True")
        kept = ctx.saved_tensors  # once: a checkpoint recomputes at every access
        theta, phi = kept[: ctx.count], kept[ctx.count :]
        total = dlosses.sum()
        found = [total * p - torch.tensordot(dlosses.to(p.dtype), q, 1) for p, q in zip(theta, phi, strict=True)]
        return None, None, *found, *[None] * ctx.count

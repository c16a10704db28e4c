from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._autograd import gradients, scatter
from .._torch import transforms_active
from ..networks.chain import InnerLoop, leaf
from ..networks.inner_problem import Flat, Problem
from ..networks.meta_gradient import needs_gradient, refuse_changed, remember, remembered
from ..networks.network import Network, refuse
from ..networks.recognise import Plan
from ..types import Loss
from . import _arguments
from .maml import MAML

LEAST = 0.1  # over the penalty's curvature: with 0 a meta-gradient of Conv4 on Omniglot may be 100 times as long as others, with this 3


class IMAML(MAML):
    r"""phi = argmin L_support(phi) + strength / 2 |phi - theta|^2, by `steps` steps of gradient descent from theta; then predict.

    The meta-gradient is that of the optimum, whatever path led there: dphi/dtheta = (I + H / strength)^-1, H the Hessian of
    L_support at phi, by `cg_steps` steps of conjugate gradient. No step is kept, so neither memory nor the cost of the backward
    pass depends on `steps`. But the meta-gradient is right only as far as phi is the optimum. It does not see that `lr` is too large
    to come there: a training then ends near chance, by ever smaller meta-gradients. Where a direction has a curvature of
    H + strength below strength / 10, conjugate gradient stops with what it has: a step along it would be of any length.

    `model`, `loss`, `adapt`, `task_chunk`: as in `MAML`; an MLP's gradients and products are native (`mlp_grad`, `mlp_hvp`),
    as are those of a convolutional network on a CPU (`conv_grad`), and its query. `lr`: a number. Gradients go to the model's
    parameters, a loss's and the inputs, and are of first order: a derivative of the meta-gradient raises RuntimeError, as do
    torch.func and torch.compile(fullgraph=True).

        # support_x [T, S, ...], support_y [T, S], query_x [T, Q, ...]
        learner(support_x, support_y, query_x)  # the adapted models' outputs
        learner.loss(support_x, support_y, query_x, query_y)  # query loss [T]

    Source: Rajeswaran et al. 2019, arXiv:1909.04630.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.01,
        steps: int = 16,
        *,
        strength: float = 2.0,
        cg_steps: int = 5,
        loss: Loss | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        adapt: Sequence[str] | None = None,
        task_chunk: int | None = None,
    ) -> None:
        name = type(self).__name__
        self.strength, self.cg_steps = _arguments.number(name, "strength", strength, positive=True), cg_steps
        lr = _arguments.number(name, "lr", lr)
        super().__init__(model, lr, steps, loss=loss, adapt=adapt, task_chunk=task_chunk)

    def _settings(self) -> tuple[Any, ...]:
        return *super()._settings(), self.strength, self.cg_steps

    def _look(self, settings: tuple[Any, ...]) -> Plan:
        _arguments.number(self._name, "strength", settings[-2], positive=True)
        _arguments.whole(self._name, "cg_steps", settings[-1], 1)
        return super()._look(settings)

    def _predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        return self._on_query(support_x, support_y, query_x)

    def _losses(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        return self._on_query(support_x, support_y, query_x, query_y)

    def _losses_and_outputs(self, *data: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            outputs = self._predict(*data[:3])
        return self._losses(*data), outputs

    def _on_query(self, support_x: Tensor, support_y: Tensor, *query: Tensor) -> Tensor:
        network, lr = self._plan().network, _arguments.number(self._name, "lr", self.lr)
        proximal = Proximal(network, lr, float(self.strength), self.cg_steps)

        def solved(problem: Problem, flat: Flat) -> Tensor:
            support = flat._replace(data=flat.data[:2])
            if needs_gradient(support):
                phi = Optimum.apply(proximal, problem, *support.items())
            else:
                phi = proximal.optimum(problem, support)
            return network.of_query(problem, phi, flat)

        found: Tensor = network.run(solved, refuse, lr, (support_x, support_y, *query))
        return found


@dataclass(frozen=True)
class Proximal:
    """The inner problem as it is when the learner is called."""

    network: Network
    lr: float
    strength: float
    cg_steps: int

    def optimum(self, problem: Problem, flat: Flat) -> tuple[Tensor, ...]:
        """phi, [T, ...]."""
        found = []
        for part in problem.parts(flat):
            inner = InnerLoop(problem, part, problem.flat([False] * len(flat.items())))
            phi = [p.detach() for p in part.theta]
            for _ in range(problem.steps):
                slopes = self.network.gradients(inner, [leaf(p, True) for p in phi], create_graph=False)
                pulled = zip(phi, slopes, part.theta, strict=True)
                phi = [p - self.lr * (g + self.strength * (p - start.detach())) for p, g, start in pulled]
            found.append(phi)
        return tuple(problem.join(p) for p in zip(*found, strict=True))

    def pulled_back(
        self, problem: Problem, part: Flat, needs: Flat, phi: Sequence[Tensor], dphi: Sequence[Tensor]
    ) -> list[Tensor]:
        """The gradients that are wanted, of the tasks of a part: with u = (H + strength)^-1 dphi, strength u to theta, and
        -d/dx [u . dL/dphi] to whatever else the loss depends on."""
        inner = InnerLoop(problem, part, needs)
        at = [leaf(p, True) for p in phi]
        slopes = self.network.gradients(inner, at, create_graph=True)
        tasks = len(part.data[0]) if inner.several else 1

        def rows(tensors: Sequence[Tensor]) -> Tensor:
            return torch.cat([x.reshape(tasks, -1) for x in tensors], 1)

        def like_phi(flat: Tensor) -> list[Tensor]:
            pieces = flat.split([p.numel() // tasks for p in at], 1)
            return [piece.reshape(p.shape) for piece, p in zip(pieces, at, strict=True)]

        def product(v: Tensor) -> Tensor:
            return rows(gradients(slopes, at, like_phi(v), retain_graph=True)) + self.strength * v

        u = like_phi(conjugate_gradient(product, rows(dphi), self.cg_steps, least=self.strength * LEAST))
        dothers = [-d for d in gradients(slopes, inner.others, u)]
        shared = sum(needs.shared)
        dtheta = [self.strength * d for d, need in zip(u, needs.theta, strict=True) if need]
        return [*dtheta, *dothers[:shared], *dothers[shared:]]


class Optimum(torch.autograd.Function):
    """theta -> phi [T, ...]; backward by the implicit function theorem."""

    @staticmethod
    def forward(ctx: Any, proximal: Proximal, problem: Problem, *items: Any) -> Any:
        ctx.proximal = proximal
        phi = proximal.optimum(problem, problem.flat(items))
        remember(ctx, problem, items, phi)
        return tuple(p.clone() for p in phi)

    @staticmethod
    def backward(ctx: Any, *dphi: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("IMAML: the meta-gradient must be of first order, got create_graph=True")
        problem, needs = ctx.problem, ctx.needs_input_grad[2:]
        items, phi = remembered(ctx)
        refuse_changed(ctx)
        flat, grads = problem.flat(items), []
        if transforms_active():
            refuse(problem, flat)
        at_parts, cotangents = (zip(*(problem.split(x) for x in xs), strict=True) for xs in (phi, dphi))
        for part, at, d in zip(problem.parts(flat), at_parts, cotangents, strict=True):
            grads.append(ctx.proximal.pulled_back(problem, part, problem.flat(needs), at, d))
        return None, None, *scatter(problem.summed(grads, needs, data=2), needs)


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, steps: int, *, least: float = 0.0) -> Tensor:
    """x with A x = b for every task, [T, P], from 0 in at most `steps` steps; product(v) = A v, A symmetric.

    A task stops where it is solved up to rounding, and where a direction d shows a curvature d . A d / |d|^2 of `least` or below, by
    default where A is not positive definite. NaN in A or b gives NaN.
    Source: Hestenes and Stiefel 1952, J. Res. NBS 49(6).
    """
    x, residual, direction = torch.zeros_like(b), b, b
    size = b.square().sum(1, keepdim=True)
    solved, going = size * torch.finfo(b.dtype).eps ** 2, size != 0
    for _ in range(steps):
        image = product(direction)
        bend = (direction * image).sum(1, keepdim=True)
        flat = bend <= least * direction.square().sum(1, keepdim=True)
        going = going & ~(size <= solved) & ~flat  # NaN goes on
        rate = torch.where(going, size / bend, 0)
        x, residual = x + rate * direction, residual - rate * image
        before, size = size, residual.square().sum(1, keepdim=True)
        direction = residual + torch.where(going, size / before, 0) * direction
    return x

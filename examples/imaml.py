"""Sinusoid regression by iMAML: the gradient of an optimum, by conjugate gradient on curvature products.

Rajeswaran et al. 2019, arXiv:1909.04630. From theta, a task's parameters phi minimise L(phi) + strength / 2 |phi - theta|^2 over
its support. There dphi/dtheta = (I + H / strength)^-1 with H the curvature of L at phi, whatever way led to phi: no inner step is
kept or differentiated. All tasks of a batch take their steps together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import sinusoid
import torch
from common import Estimate, arguments, count, mlp, print_table, run, train
from torch import Tensor, nn

import fastmeta
from fastmeta.learners.imaml import conjugate_gradient


def flat(params: Sequence[Tensor]) -> Tensor:
    """[T, P] of tensors [T, ...]."""
    return torch.cat([p.flatten(1) for p in params], 1)


class IMAML(nn.Module):
    """`layers`: linear layers with biases, in order; tanh between them, because an optimum's gradient asks for a smooth loss.

    `curvature`: "ggn", positive semi-definite everywhere, or "hessian", exact, but not positive definite far from an optimum.
    """

    def __init__(
        self, layers: nn.Module, *, strength: float, inner_steps: int, cg_steps: int, curvature: str = "ggn"
    ) -> None:
        super().__init__()
        if not strength > 0:
            raise ValueError(f"IMAML: strength must be positive, got {strength}")
        self.layers, self.strength, self.curvature = layers, strength, curvature
        self.inner_steps, self.cg_steps = inner_steps, cg_steps
        self.options = {"activation": "tanh", "loss": "mse"}

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        """The adapted parameters' loss on the query of each task, [T]."""
        phi = Optimum.apply(self, support_x, support_y, *self.layers.parameters())
        return fastmeta.mlp_loss(phi, query_x, query_y, **self.options)

    def adapt(self, x: Tensor, y: Tensor) -> Tensor:
        """phi [T, P] by Levenberg and Marquardt: Gauss-Newton steps, damped as much as it takes to descend."""
        phi = self.theta().expand(len(x), -1)
        value, slope = self.objective(phi, x, y)
        damping = torch.ones_like(value)
        for _ in range(self.inner_steps):
            product = self.product(phi, x, y, "ggn", self.strength + damping)
            trial = phi - conjugate_gradient(product, slope, self.cg_steps)
            trial_value, trial_slope = self.objective(trial, x, y)
            better = trial_value < value
            phi, value = torch.where(better, trial, phi), torch.where(better, trial_value, value)
            slope = torch.where(better, trial_slope, slope)
            damping = damping * torch.where(better, 0.3, 3.0)
        return phi

    def pull_back(self, dphi: Tensor, phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """(I + H / strength)^-1 dphi, [T, P]."""
        product = self.product(phi, x, y, self.curvature, self.strength)
        return self.strength * conjugate_gradient(product, dphi, self.cg_steps)

    def objective(self, phi: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """L(phi) + strength / 2 |phi - theta|^2 [T, 1] and its gradient [T, P]."""
        loss, grads = fastmeta.mlp_grad(self.split(phi), x, y, **self.options)
        apart = phi - self.theta()
        value = loss.unsqueeze(1) + self.strength / 2 * apart.square().sum(1, keepdim=True)
        return value, flat(grads) + self.strength * apart

    def product(
        self, phi: Tensor, x: Tensor, y: Tensor, curvature: str, damping: float | Tensor
    ) -> Callable[[Tensor], Tensor]:
        """v -> (H + damping) v for every task, [T, P]."""
        params = self.split(phi)

        def times(v: Tensor) -> Tensor:
            return (
                flat(fastmeta.mlp_hvp(params, self.split(v), x, y, **self.options, curvature=curvature)) + damping * v
            )

        return times

    def theta(self) -> Tensor:
        """[P], without a graph."""
        return torch.cat([p.detach().flatten() for p in self.layers.parameters()])

    def split(self, rows: Tensor) -> list[Tensor]:
        """`flat` undone: each parameter's part of [T, P], with its shape."""
        params = list(self.layers.parameters())
        pieces = rows.split([p.numel() for p in params], 1)
        return [piece.reshape(-1, *p.shape) for piece, p in zip(pieces, params, strict=True)]


class Optimum(torch.autograd.Function):
    """theta -> phi; backward by the implicit function theorem, to theta only, of first order only."""

    @staticmethod
    def forward(ctx: Any, learner: IMAML, x: Tensor, y: Tensor, *theta: Tensor) -> tuple[Tensor, ...]:
        phi = learner.adapt(x, y)
        ctx.learner = learner
        ctx.save_for_backward(phi, x, y)
        return tuple(learner.split(phi.clone()))

    @staticmethod
    def backward(ctx: Any, *dphi: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("IMAML: the gradient must be of first order, got create_graph=True")
        dtheta = ctx.learner.pull_back(flat(dphi), *ctx.saved_tensors).sum(0, keepdim=True)
        return None, None, None, *(d.squeeze(0) for d in ctx.learner.split(dtheta))


def main(args: argparse.Namespace) -> None:
    learner = IMAML(
        mlp(1, 40, 40, 1),
        strength=args.strength,
        inner_steps=args.inner_steps,
        cg_steps=args.cg_steps,
        curvature=args.curvature,
    ).to(args.device)
    sample = sinusoid.sampler(tasks=args.tasks, shots=args.shots, seed=args.seed, device=args.device)
    train(learner, sample, steps=args.steps, lr=args.lr, label="iMAML")

    unseen = sinusoid.unseen_tasks(args.eval_tasks, args.shots, args.device)
    support = unseen.support_x, unseen.support_y
    with torch.no_grad():
        before = fastmeta.mlp_loss(list(learner.layers.parameters()), *unseen[2:], **learner.options)
        after = learner(*unseen)
        start = learner.theta().expand(args.eval_tasks, -1)
        slopes = [learner.objective(phi, *support)[1].norm(dim=1) for phi in (start, learner.adapt(*support))]
    print(f"\niMAML ({args.curvature}), {args.shots} shots, strength {args.strength}")
    rows = [["no", f"{Estimate.of(before):.3f}"], ["yes", f"{Estimate.of(after):.3f}"]]
    print_table(["adapted", f"MSE on {args.eval_tasks} unseen tasks (95 % CI)"], rows)
    shrinks = (slopes[1] / slopes[0]).median()
    print(f"\n{args.inner_steps} inner steps shrink the gradient to {shrinks:.1e} of its length (median)")


if __name__ == "__main__":
    parser = arguments(__doc__, steps=2000)
    parser.add_argument("--shots", type=count, default=10, help="support points of a task")
    parser.add_argument("--strength", type=float, default=0.5, help="of the pull towards theta")
    parser.add_argument("--inner-steps", type=count, default=5, help="Gauss-Newton steps of the adaptation")
    parser.add_argument("--cg-steps", type=count, default=5, help="steps of each conjugate gradient")
    parser.add_argument("--curvature", choices=("ggn", "hessian"), default="ggn", help="H in the meta-gradient")
    parser.add_argument("--tasks", type=count, default=25, help="tasks of a meta-iteration")
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's learning rate")
    parser.add_argument("--eval-tasks", type=count, default=1000, help="unseen tasks to evaluate on")
    run(parser, main)

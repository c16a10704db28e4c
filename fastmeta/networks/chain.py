"""Inner SGD on any module, and back through it by a chain of Hessian-vector products: no graph outlives its step, so memory
does not grow with the steps but for the parameters before each.

    theta_{k+1} = theta_k - alpha_k g_k,   v_k = v_{k+1} - H_k (alpha_k v_{k+1}),   dalpha_k = -g_k v_{k+1}

and whatever else the loss depends on (parameters that stay, inputs) gets -d/dx [(alpha_k v_{k+1}) . g_k] from every step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .._autograd import gradients
from ..inner.sgd_step import sgd_step
from .inner_problem import Flat, Problem

Update = Callable[[list[Tensor], list[Tensor], Any], Sequence[Tensor]]
Noise = tuple[Tensor, torch.device, Tensor | None]  # the CPU's; a CUDA device's


class Captured(Exception):
    """The loss depends on a trained tensor that is neither a parameter nor an input."""


@dataclass
class Step:
    theta: list[Tensor]  # leaves
    noise: Noise  # what the random numbers of this step start from
    grads: list[Tensor] | None = None  # g_k, with its graph unless first order; None: to be computed again


class InnerLoop:
    """The inner loop on one part of the tasks (`Flat.parts`), support in `flat.data`; `needs`: the gradients wanted."""

    def __init__(self, problem: Problem, flat: Flat, needs: Flat) -> None:
        self.problem, self.rates, self.theta, self.needs = problem, flat.rates, flat.theta, needs
        self.several = problem.at_once > 1
        self.shared = [leaf(p, need) for p, need in zip(flat.shared, needs.shared, strict=True)]
        self.support = [leaf(x, need) for x, need in zip(flat.data, needs.data, strict=True)]
        self.others = [t for t in (*self.shared, *self.support) if t.requires_grad]
        self.taken: list[Step] = []

    @property
    def runs_back(self) -> bool:
        """Whether the way back has anything to do."""
        wanted = self.needs.items() if not self.problem.first_order else self.needs.rates
        return any(wanted)

    def losses(self, theta: Sequence[Tensor], examples: Sequence[Tensor]) -> Tensor:
        """[t]; or the loss, of one task."""
        found: Tensor = self._call(theta, examples, return_outputs=False)
        return found

    def on_query(self, theta: Sequence[Tensor], query: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """`losses`, and the outputs where they are asked for."""
        found = self._call(theta, query, self.problem.return_outputs)
        return found if isinstance(found, tuple) else (found,)

    def _call(self, theta: Sequence[Tensor], examples: Sequence[Tensor], return_outputs: bool) -> Any:
        call = self.problem.call_tasks if self.several else self.problem.call
        return call(theta, self.shared, *examples, return_outputs=return_outputs)

    def gradients(self, theta: Sequence[Tensor], create_graph: bool, check: bool = False) -> list[Tensor]:
        if not theta:
            return []
        with torch.enable_grad(), twice_differentiable() if create_graph else contextlib.nullcontext():
            total = self.losses(theta, self.support).sum()
            if check:
                refuse_captured(total, [*theta, *self.others])
            return list(gradients([total], theta, create_graph=create_graph))

    def descend(self, *, graphs: int = 0, check: bool = False, update: Update = sgd_step) -> list[Tensor]:
        """theta_K. `graphs`: of how many last steps the graphs stay, so that the way back has less to do again. `check`: raise
        Captured where the loss depends on more than is known. `update`: (theta, grads, rates) -> the next theta."""
        theta, steps = list(self.theta), self.problem.steps
        for k in range(steps):
            leaves, noise = [leaf(p, True) for p in theta], noise_of(self.support[0])
            kept = self.runs_back and (self.problem.first_order or k >= steps - graphs)
            grads = self.gradients(leaves, kept and not self.problem.first_order, check and k == 0)
            if self.runs_back:
                self.taken.append(Step(leaves, noise, grads if kept else None))
            with torch.no_grad():
                theta = list(update(leaves, grads, self.problem.rates_at(self.rates, k)))
        return theta

    def back(
        self, v: Sequence[Tensor], dothers: Sequence[Any], joining: dict[int, Sequence[Tensor]] | None = None
    ) -> list[Tensor]:
        """The gradients that are wanted, in the order of `flat.items()`, from v_K and what `others` have already; joining[k] is
        added to v_k on the way."""
        v, dothers = list(v), list(dothers)
        drates = self._zero_rates()
        if not self.taken:  # first order, and no rate wants a gradient: what joins v on the way is all there is
            for k, more in (joining or {}).items():
                v = [u + d for u, d in zip(v, more, strict=True)] if k < self.problem.steps else v
        for k in reversed(range(len(self.taken))):
            step = self.taken.pop()
            grads = step.grads if step.grads is not None else self._again(step)
            self._add_rates(drates, k, grads, v)
            if not self.problem.first_order:
                at = self.problem.rates_at(self.rates, k)
                alphas = at if isinstance(at, list) else [at] * len(v)
                direction = [alpha * u for alpha, u in zip(alphas, v, strict=True)]
                found = gradients(grads, [*step.theta, *self.others], direction)
                products, rest = found[: len(v)], found[len(v) :]
                v = [u - product for u, product in zip(v, products, strict=True)]
                dothers = [total - d for total, d in zip(dothers, rest, strict=True)]
            if joining and k in joining:
                v = [u + more for u, more in zip(v, joining[k], strict=True)]
        dtheta = [u for u, need in zip(v, self.needs.theta, strict=True) if need]
        count = sum(self.needs.shared)
        return [*dtheta, *dothers[:count], *(d for d in drates if d is not None), *dothers[count:]]

    def _again(self, step: Step) -> list[Tensor]:
        now = noise_of(self.support[0])
        restore(step.noise)
        grads = self.gradients(step.theta, not self.problem.first_order)
        restore(now)
        return grads

    def _zero_rates(self) -> list[Tensor | None]:
        """For each rate that wants a gradient: [t, *rate], or of one task like the rate."""
        lead = self.support[0].shape[: int(self.several)]
        pairs = zip(self.rates, self.needs.rates, strict=True)
        return [rate.new_zeros((*lead, *rate.shape)) if need else None for rate, need in pairs]

    def _add_rates(self, drates: Sequence[Tensor | None], k: int, grads: Sequence[Tensor], v: Sequence[Tensor]) -> None:
        if not any(self.needs.rates):
            return
        lead = int(self.several)
        products: list[Any] = [g.detach() * u for g, u in zip(grads, v, strict=True)]
        if self.problem.rate_axes == (0,):
            products = [sum(p.flatten(lead).sum(-1) if p.ndim > lead else p for p in products)]
        for i, (total, product) in enumerate(zip(drates, products, strict=True)):
            if total is not None:
                at_step = total.select(lead, k) if self.problem.per_step(i, self.rates[i]) else total
                at_step -= product


def twice_differentiable() -> contextlib.AbstractContextManager[None]:
    """torch's fused attention has no second derivative."""
    return sdpa_kernel(SDPBackend.MATH)


def leaf(x: Tensor, wants_gradient: bool) -> Tensor:
    return x.detach().requires_grad_() if wants_gradient else x.detach()


def refuse_captured(loss: Tensor, known: Sequence[Tensor]) -> None:
    """Captured, where the graph of `loss` ends in a tensor that is not among `known`."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and not any(variable is x for x in known):
            raise Captured
        waiting += [n for n, _ in node.next_functions]


def noise_of(like: Tensor) -> Noise:
    """The state of the generators that layers on `like`'s device draw from; in a capture, of the CPU's alone."""
    told = like.is_cuda and not torch.cuda.is_current_stream_capturing()
    return torch.get_rng_state(), like.device, torch.cuda.get_rng_state(like.device) if told else None


def restore(noise: Noise) -> None:
    cpu, device, cuda = noise
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)


def drew(before: Noise, like: Tensor) -> bool:
    """Whether random numbers have been drawn since."""
    (cpu, _, cuda), (cpu_before, _, cuda_before) = noise_of(like), before
    same = torch.equal(cpu, cpu_before)
    if cuda is not None and cuda_before is not None:
        same = same and torch.equal(cuda, cuda_before)
    return not same

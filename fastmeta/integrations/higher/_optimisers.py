"""Optimisers whose steps are part of the graph."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._torch import tree_map_only
from .. import _arguments
from .._steps import active, root, stepped

Override = Mapping[str, Sequence[Any]]
GradCallback = Callable[[list[Tensor | None]], Sequence[Tensor | None]]


class DifferentiableOptimizer:
    """What `innerloop_ctx` makes of an optimiser `other` on some of `reference_params`, whose options and state it starts from.

    `param_groups`: the options, and under "params" the parameters of the step. `state`: for each group {place in it: {name:
    tensor}}. A subclass writes `_update(grouped_grads)`, which exchanges the tensors in group["params"]; see `register_optim`.
    """

    unsupported: tuple[str, ...] = ()

    def __init__(
        self,
        other: torch.optim.Optimizer,
        reference_params: Iterable[Tensor],
        fmodel: Any = None,
        device: torch.device | None = None,
        override: Override | None = None,
        grad_callback: GradCallback | None = None,
        track_higher_grads: bool = True,
    ) -> None:
        reference = _arguments.listed("innerloop_ctx", "reference_params", reference_params)
        place = {id(p): i for i, p in enumerate(reference)}
        self._count = len(reference) if fmodel is None else len(fmodel.fast_params)
        if len(reference) != self._count:
            words = f"reference_params must be the {self._count} parameters of the model"
            raise ValueError(f"innerloop_ctx: {words}, got {len(reference)}")
        for group in other.param_groups:
            if foreign := sum(id(p) not in place for p in group["params"]):
                raise ValueError(f"innerloop_ctx: opt must hold parameters of model, got {foreign} others")
        self._fmodel, self._grad_callback, self._track_higher_grads = fmodel, grad_callback, track_higher_grads
        self._places = [[place[id(p)] for p in group["params"]] for group in other.param_groups]
        self.param_groups = [group | {"params": [None] * len(group["params"])} for group in other.param_groups]
        self.state: list[dict[int, dict[str, Any]]] = [defaultdict(dict) for _ in self.param_groups]
        for state, group in zip(self.state, other.param_groups, strict=True):
            for i, p in enumerate(group["params"]):
                if p in other.state:
                    state[i] = tree_map_only(Tensor, lambda t: fresh(t, device), dict(other.state[p]))
        self._apply_override(override)

    def _apply_override(self, override: Override | None) -> None:
        override = {} if override is None else override
        _arguments.mapping("innerloop_ctx", "override", override)
        for name, values in override.items():
            values = _arguments.listed("innerloop_ctx", f"override[{name!r}]", values)
            if len(values) not in (1, len(self.param_groups)):
                count = len(self.param_groups)
                raise ValueError(f"innerloop_ctx: override[{name!r}] must have 1 or {count} entries, got {len(values)}")
            for i, group in enumerate(self.param_groups):
                group[name] = values[i if len(values) > 1 else 0]
        for group in self.param_groups:
            if wrong := [name for name in self.unsupported if active(group.get(name))]:
                words = f"{type(self).__name__}: {', '.join(self.unsupported)} must not be set"
                raise ValueError(f"{words}, got {wrong[0]}={group[wrong[0]]}")

    def step(
        self,
        loss: Tensor,
        params: Iterable[Tensor] | None = None,
        override: Override | None = None,
        grad_callback: GradCallback | None = None,
    ) -> list[Tensor]:
        """The parameters after a step on `loss`, which are now those of the model; what the loss does not depend on stays.

        `params`: those to be stepped, which must be given where there is no model. `grad_callback`: from the gradients of all
        parameters to those to be used.
        """
        _arguments.tensor("step", "loss", loss)
        self._apply_override(override)
        if params is None and self._fmodel is None:
            raise ValueError("step: params must be given to an optimiser without a model, got none")
        before = _arguments.listed("step", "params", self._fmodel.fast_params if params is None else params)
        if len(before) != self._count:
            raise ValueError(
                f"step: params must have one entry for each of {self._count} parameters, got {len(before)}"
            )
        for i, p in enumerate(before):
            _arguments.tensor("step", f"params[{i}]", p)
        tracked = self._track_higher_grads
        wanted = [p for p in before if p.requires_grad]
        found = iter(torch.autograd.grad(loss, wanted, create_graph=tracked, allow_unused=True))
        grads: list[Tensor | None] = [next(found) if p.requires_grad else None for p in before]
        callback = grad_callback or self._grad_callback
        if callback is not None:
            grads = _arguments.like_params("grad_callback", "the gradients", callback(grads), before)
        with torch.set_grad_enabled(tracked):
            after = self._stepped(before, grads)
        if not tracked:
            after = [p.detach().requires_grad_(was.requires_grad) for p, was in zip(after, before, strict=True)]
        if self._fmodel is not None:
            self._fmodel.update_params(after)
        return after

    def _stepped(self, before: list[Tensor], grads: list[Tensor | None]) -> list[Tensor]:
        for group, places in zip(self.param_groups, self._places, strict=True):
            group["params"] = [before[i] for i in places]
        self._update([[grads[i] for i in places] for places in self._places])
        after = list(before)
        for group, places in zip(self.param_groups, self._places, strict=True):
            for i, p in zip(places, group["params"], strict=True):
                after[i] = p
        return after

    def _update(self, grouped_grads: list[list[Tensor | None]]) -> None:
        raise NotImplementedError(f"{type(self).__name__}: _update must be written, got none")


class DifferentiableSGD(DifferentiableOptimizer):
    """torch.optim.SGD: p - lr g, with momentum, dampening, nesterov and weight_decay."""

    unsupported = ("maximize",)

    def _update(self, grouped_grads: list[list[Tensor | None]]) -> None:
        for group, state, grads in zip(self.param_groups, self.state, grouped_grads, strict=True):
            if active(group["momentum"]) or active(group["weight_decay"]):
                for i, (p, g) in enumerate(zip(group["params"], grads, strict=True)):
                    grads[i] = g if g is None else self._direction(group, state[i], p, g)
        step_groups(self.param_groups, grouped_grads)

    @staticmethod
    def _direction(group: Mapping[str, Any], state: dict[str, Any], p: Tensor, g: Tensor) -> Tensor:
        if active(group["weight_decay"]):
            g = g + group["weight_decay"] * p
        momentum = group["momentum"]
        if not active(momentum):
            return g
        before = state.get("momentum_buffer")
        state["momentum_buffer"] = now = g if before is None else before * momentum + (1 - group["dampening"]) * g
        return g + momentum * now if group["nesterov"] else now


class DifferentiableAdam(DifferentiableOptimizer):
    """torch.optim.Adam as higher writes it: p - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps). Where v is 0, its root has the
    gradient 0."""

    unsupported = ("maximize",)
    decoupled = False  # weight decay: from the gradient

    def _update(self, grouped_grads: list[list[Tensor | None]]) -> None:
        for group, state, grads in zip(self.param_groups, self.state, grouped_grads, strict=True):
            group["params"] = [
                p if g is None else self._after(group, state[i], p, g)
                for i, (p, g) in enumerate(zip(group["params"], grads, strict=True))
            ]

    def _after(self, group: Mapping[str, Any], state: dict[str, Any], p: Tensor, g: Tensor) -> Tensor:
        b1, b2 = group["betas"]
        zero = torch.zeros_like(p)
        if active(group["weight_decay"]):
            if self.decoupled or group.get("decoupled_weight_decay"):
                p = p * (1 - group["lr"] * group["weight_decay"])
            else:
                g = g + group["weight_decay"] * p
        state["step"] = t = float(state.get("step", 0)) + 1  # torch counts in float32, whose powers lose digits
        state["exp_avg"] = m = state.get("exp_avg", zero) * b1 + (1 - b1) * g
        state["exp_avg_sq"] = v = state.get("exp_avg_sq", zero) * b2 + (1 - b2) * g * g
        if group["amsgrad"]:
            state["max_exp_avg_sq"] = v = torch.maximum(state.get("max_exp_avg_sq", zero), v)
        correction = 1 - b2**t
        of_v = correction**0.5 if isinstance(correction, Tensor) else math.sqrt(correction)
        rate = group["lr"] * of_v / (1 - b1**t)
        found: Tensor = p - rate * (m / (root(v) + group["eps"]))
        return found


class DifferentiableAdamW(DifferentiableAdam):
    """torch.optim.AdamW: (1 - lr weight_decay) p before the step of Adam without it."""

    decoupled = True


def step_groups(groups: Sequence[dict[str, Any]], grads: Sequence[Sequence[Tensor | None]]) -> None:
    """p - lr g for the parameters of all groups at once; those without a gradient stay."""
    params = [p for group in groups for p in group["params"]]
    rates = [group["lr"] for group in groups for _ in group["params"]]
    lr = rates if len(groups) > 1 else groups[0]["lr"]
    after = iter(stepped(params, [g for of_group in grads for g in of_group], lr))
    for group in groups:
        group["params"] = [next(after) for _ in group["params"]]


def fresh(t: Tensor, device: torch.device | None, copy: bool = True) -> Tensor:
    """A leaf with the values of `t`."""
    cut = t.detach().clone() if copy else t.detach()
    return cut.to(device or t.device).requires_grad_(t.requires_grad)

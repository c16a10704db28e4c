"""Inner loops as anybody writes them in PyTorch, with the arguments of fastmeta.unroll: on one graph over all steps, or with a
checkpoint at each step, whose graph is made again on the way back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastmeta

Params = Mapping[str, Tensor]


def sgd(
    p: Tensor, g: Tensor, state: Sequence[Tensor], k: int, lr: Any, momentum: Any = 0, weight_decay: Any = 0,
    nesterov: bool = False,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """torch.optim.SGD's parameter and state after step number `k`, the first being 1."""
    g = g + weight_decay * p
    b = momentum * state[0] + g
    return p - lr * (g + momentum * b if nesterov else b), [b]


def adam(
    p: Tensor, g: Tensor, state: Sequence[Tensor], k: int, lr: Any, betas: Any = (0.9, 0.999), eps: float = 1e-8,
    weight_decay: Any = 0,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """torch.optim.Adam's parameter and state after step number `k`, the first being 1."""
    g = g + weight_decay * p
    m = betas[0] * state[0] + (1 - betas[0]) * g
    v = betas[1] * state[1] + (1 - betas[1]) * g**2
    return p - lr * (m / (1 - betas[0] ** k)) / ((v / (1 - betas[1] ** k)).sqrt() + eps), [m, v]


def by_autograd(
    loss: Callable[..., Tensor], params: Params | nn.Module, batches: Any, *, optimiser: Any,
    state: Mapping[str, Any] | None = None, steps: int | None = None, outer: Any = None, tasks: bool | int = False,
    checkpoints: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """What fastmeta.unroll gives for a function, a dict or a module, and a list of batches or one batch and `steps`."""
    start = dict(params.named_parameters() if isinstance(params, nn.Module) else params)
    batches = [batches] * steps if steps else batches
    outers = outer if isinstance(outer, list) else [*[None] * (len(batches) - 1), outer]
    run = partial(checkpoint, use_reentrant=False) if checkpoints else lambda function, *given: function(*given)
    point = start if isinstance(tasks, bool) else {name: p.expand(tasks, *p.shape) for name, p in start.items()}
    names = optimiser.names or ("momentum_buffer",)
    first: Any = {name: {key: torch.zeros_like(p, requires_grad=False) for key, p in point.items()} for name in names}
    first |= {"step": 0} | dict(state or {})
    states = {key: [first[name][key] for name in names] for key in point}
    losses: list[Tensor | None] = []
    for k, (batch, function) in enumerate(zip(batches, outers, strict=True)):
        numbers = {name: _numbers(optimiser, name, p, k) for name, p in start.items()}
        point, states = run(partial(_step, loss, optimiser, numbers, first["step"] + k + 1), point, states, *batch)
        losses.append(run(function, point) if function is not None else None)
    following = {"step": first["step"] + len(batches)}
    following |= {slot: {name: of[i] for name, of in states.items()} for i, slot in enumerate(optimiser.names)}
    if outer is None:
        return point, following
    counted = [loss for loss in losses if loss is not None]
    if not isinstance(outer, list):
        return counted[0], following
    return torch.stack([torch.zeros_like(counted[0]) if loss is None else loss for loss in losses]), following


def _step(
    loss: Callable[..., Tensor], optimiser: Any, numbers: Mapping[str, dict[str, Any]], k: int, point: Params,
    states: Mapping[str, list[Tensor]], *batch: Any,
) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:  # fmt: skip
    formula = adam if isinstance(optimiser, fastmeta.Adam) else sgd
    leaves = {name: p if p.requires_grad else p.detach().requires_grad_() for name, p in point.items()}
    grads = torch.autograd.grad(loss(leaves, *batch).sum(), list(leaves.values()), create_graph=True)
    after = {
        name: formula(p, g, states[name], k, **numbers[name])
        for (name, p), g in zip(leaves.items(), grads, strict=True)
    }
    return {name: p for name, (p, _) in after.items()}, {name: state for name, (_, state) in after.items()}


def _numbers(optimiser: Any, name: str, p: Tensor, k: int) -> dict[str, Any]:
    """The optimiser's for one parameter in step k; a tensor of one dimension more than it needs has a value for each step."""

    def at(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(at, value))
        own = isinstance(value, Mapping)
        value = value[name] if own else value
        return value[k] if isinstance(value, Tensor) and value.ndim == (p.ndim + 1 if own else 1) else value

    return {field.name: at(getattr(optimiser, field.name)) for field in fields(optimiser)}


WAYS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "unroll": fastmeta.unroll,
    "unroll-sqrt": partial(fastmeta.unroll, keep="sqrt"),
    "autograd": by_autograd,
    "checkpoint": partial(by_autograd, checkpoints=True),
}

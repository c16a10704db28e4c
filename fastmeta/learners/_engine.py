"""Inner SGD on any module, task by task through autograd: exact for every layer, batch norm included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..ops.sgd_step import sgd_step

Loss = Callable[[Tensor, Tensor], Tensor]


def adapted_outputs(
    model: nn.Module,
    rates: Any,
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    *,
    steps: int,
    loss: Loss,
    first_order: bool,
) -> Tensor:
    """The query outputs `[T, Q, ...]` of `model` adapted to each task's support."""
    keep_graph = torch.is_grad_enabled()
    outputs = []
    for sx, sy, qx in zip(support_x, support_y, query_x, strict=True):
        with torch.enable_grad():
            params = adapt(model, rates, sx, sy, steps=steps, loss=loss, first_order=first_order, keep_graph=keep_graph)
        outputs.append(functional_call(model, params, (qx,)))
    return torch.stack(outputs)


def adapt(
    model: nn.Module,
    rates: Any,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    loss: Loss,
    first_order: bool,
    keep_graph: bool,
) -> dict[str, Tensor]:
    """The parameters after `steps` inner steps on one task; frozen ones stay. Without `keep_graph` they are detached."""
    params: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not keep_graph:
        params = {name: p.detach().requires_grad_() for name, p in params.items()}
    second_order = keep_graph and not first_order
    for k in range(steps):
        value = loss(functional_call(model, params, (x,)), y)
        found = torch.autograd.grad(
            value, list(params.values()), create_graph=second_order, allow_unused=True, materialize_grads=True
        )
        grads = dict(zip(params, found, strict=True))
        params = dict(sgd_step(params, grads, _at_step(rates, params, k)))
        if not keep_graph:
            params = {name: p.detach().requires_grad_() for name, p in params.items()}
    return params


def _at_step(rates: Any, params: dict[str, Tensor], k: int) -> Any:
    """The rates of step k, as `sgd_step` takes them; a leading [steps] axis is indexed."""
    if isinstance(rates, list):
        return {
            name: rate[k] if isinstance(rate, Tensor) and rate.ndim == p.ndim + 1 else rate
            for (name, p), rate in zip(params.items(), rates, strict=True)
        }
    return rates[k] if isinstance(rates, Tensor) and rates.ndim else rates

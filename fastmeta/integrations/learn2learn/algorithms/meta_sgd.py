"""Meta-SGD written as one task after another. `fastmeta.MetaSGD` takes all tasks at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ..._steps import take_step
from ..utils import Module, check_lengths, clone_module
from .maml import Learner


def meta_sgd_update(model: Module, lrs: Iterable[Tensor], grads: Sequence[Tensor | None] | None = None) -> Module:
    """p - lr g for every parameter, in `model` itself, which is returned; a rate is of one number or of the parameter's shape.
    Without `grads`: those in the attributes `grad`."""
    params, rates = list(model.parameters()), list(lrs)
    grads = [p.grad for p in params] if grads is None else grads
    check_lengths("meta_sgd_update", "grads", grads, params)
    check_lengths("meta_sgd_update", "lrs", rates, params)
    take_step(model, params, grads, rates)
    return model


class MetaSGD(Learner):
    """theta' = theta - alpha dL(theta)/dtheta by `adapt(loss)`, alpha a learned rate for each parameter, which starts at `lr`.

    `lrs`: rates that are there already, in the order of the parameters. `first_order`: without second derivatives.
    """

    def __init__(
        self, model: nn.Module, lr: float = 1.0, first_order: bool = False, lrs: Iterable[Tensor] | None = None
    ) -> None:
        super().__init__()
        self.module = model
        if lrs is None:
            lrs = nn.ParameterList([nn.Parameter(torch.full_like(p, lr)) for p in model.parameters()])
        self.lrs, self.first_order = lrs, first_order

    def clone(self) -> MetaSGD:
        return MetaSGD(clone_module(self.module), lrs=list(self.lrs), first_order=self.first_order)

    def adapt(self, loss: Tensor, first_order: bool | None = None) -> None:
        second_order = not (self.first_order if first_order is None else first_order)
        grads = torch.autograd.grad(
            loss, list(self.module.parameters()), retain_graph=second_order, create_graph=second_order
        )
        meta_sgd_update(self.module, self.lrs, grads)

"""Meta-SGD written as one task after another. `fastmeta.MetaSGD` takes all tasks at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ... import _arguments
from ..._steps import Module, take_step
from ...recording import computes, realised
from ..utils import clone_parameters, copied
from ._recorded import clone_of_meta_sgd
from .base_learner import BaseLearner


def meta_sgd_update(
    model: Module, lrs: Iterable[Tensor] | None = None, grads: Sequence[Tensor | None] | None = None
) -> Module:
    """p - lr g for every parameter, in `model` itself, which is returned; a rate is of one number or of the parameter's shape.
    Without `grads`: those in the attributes `grad`."""
    op = "meta_sgd_update"
    _arguments.module(op, "model", model)
    computes(model)
    params = list(model.parameters())
    if lrs is None:
        raise NotImplementedError(f"{op}: lrs must be given, got none: rates in the attributes _lr are not read here")
    grads = _arguments.like_params(op, "grads", [p.grad for p in params] if grads is None else grads, params)
    take_step(model, params, realised(grads), _arguments.like_params(op, "lrs", lrs, params, tensors=False))
    return model


class MetaSGD(BaseLearner):
    """theta' = theta - alpha dL(theta)/dtheta by `adapt(loss)`, alpha a learned rate for each parameter, which starts at `lr`.

    `lrs`: rates that are there already, in the order of the parameters. `first_order`: without second derivatives.
    """

    def __init__(
        self, model: nn.Module, lr: float = 1.0, first_order: bool = False, lrs: Iterable[Tensor] | None = None
    ) -> None:
        _arguments.module("MetaSGD", "model", model)
        _arguments.number("MetaSGD", "lr", lr)
        super().__init__(model)
        if lrs is None:
            lrs = nn.ParameterList([nn.Parameter(torch.ones_like(p) * lr) for p in model.parameters()])
        self.lrs, self.first_order = lrs, first_order

    def clone(self) -> MetaSGD:
        recorded: MetaSGD | None = clone_of_meta_sgd(self, MetaSGD)
        if recorded is not None:
            return recorded
        return MetaSGD(copied(self.module), lrs=clone_parameters(self.lrs), first_order=self.first_order)

    def adapt(self, loss: Tensor, first_order: bool | None = None) -> None:
        _arguments.tensor("MetaSGD.adapt", "loss", loss)
        second_order = not (self.first_order if first_order is None else first_order)
        params = list(self.module.parameters())
        grads = torch.autograd.grad(loss, params, retain_graph=second_order, create_graph=second_order)
        take_step(self.module, params, grads, _arguments.like_params("MetaSGD.adapt", "lrs", self.lrs, params, False))

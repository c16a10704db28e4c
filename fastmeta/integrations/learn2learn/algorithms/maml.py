"""MAML written as one task after another: clone, adapt, evaluate. `fastmeta.MAML` takes all tasks at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import _arguments
from ..._steps import Module, take_step
from ...recording import computes, realised, updated
from ..utils import copied, update_module
from ._recorded import clone_of_maml
from .base_learner import BaseLearner


def maml_update(model: Module, lr: Any, grads: Sequence[Tensor | None] | None = None) -> Module:
    """p - lr g for every parameter, in `model` itself, which is returned. Without `grads`: `update_module(model)`."""
    if grads is None:
        return update_module(model)
    _arguments.module("maml_update", "model", model)
    _arguments.number("maml_update", "lr", lr)
    if updated(model, grads, lr):
        return model
    computes(model)
    params = list(model.parameters())
    take_step(model, params, realised(_arguments.like_params("maml_update", "grads", grads, params)), lr)
    return model


class MAML(BaseLearner):
    """theta' = theta - lr dL(theta)/dtheta by `adapt(loss)`, on a `clone()` whose parameters are results of the model's.

    `first_order`: without second derivatives. `allow_unused`: parameters that the loss does not depend on stay.
    `allow_nograd`: so do those with requires_grad=False, which are an error otherwise.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float | Tensor,
        first_order: bool = False,
        allow_unused: bool | None = None,
        allow_nograd: bool = False,
    ) -> None:
        _arguments.module("MAML", "model", model)
        _arguments.number("MAML", "lr", lr)
        super().__init__(model)
        self.lr, self.first_order, self.allow_nograd = lr, first_order, allow_nograd
        self.allow_unused = _either(allow_unused, allow_nograd)

    def adapt(
        self,
        loss: Tensor,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> None:
        _arguments.tensor("MAML.adapt", "loss", loss)
        params = list(self.module.parameters())
        if _either(allow_nograd, self.allow_nograd):
            params = [p for p in params if p.requires_grad]
        elif not all(p.requires_grad for p in params):
            raise ValueError(
                "MAML.adapt: every parameter must need a gradient, or allow_nograd be True, got frozen ones"
            )
        second_order = not _either(first_order, self.first_order)
        grads = torch.autograd.grad(
            loss, params, retain_graph=second_order, create_graph=second_order,
            allow_unused=_either(allow_unused, self.allow_unused),
        )  # fmt: skip
        take_step(self.module, params, grads, self.lr)

    def clone(
        self, first_order: bool | None = None, allow_unused: bool | None = None, allow_nograd: bool | None = None
    ) -> MAML:
        recorded: MAML | None = clone_of_maml(self, MAML, first_order, allow_unused, allow_nograd)
        if recorded is not None:
            return recorded
        return MAML(
            copied(self.module), self.lr, _either(first_order, self.first_order),
            _either(allow_unused, self.allow_unused), _either(allow_nograd, self.allow_nograd),
        )  # fmt: skip


def _either(given: bool | None, otherwise: bool) -> bool:
    return otherwise if given is None else given

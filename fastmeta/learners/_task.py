"""A model and its loss on the examples of one task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..reference.mlp_loss import task_loss

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES = ("cross_entropy", "mse")


class Bare(nn.Module):
    """A module of ours around the user's, of which no global hook of modules is to hear."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


class Task(Bare):
    """x -> the model's outputs; (x, y) -> their loss. One module, so that a loss may have parameters of its own."""

    def __init__(self, learner: str, model: nn.Module, loss: str | Loss) -> None:
        super().__init__()
        self.learner, self.model, self.loss = learner, model, loss
        self.classes: list[int] = []  # of the outputs that cross-entropy has seen last

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        outputs = self.model(x)
        if not isinstance(outputs, Tensor):
            raise TypeError(f"{self.learner}: model must return a tensor, got {type(outputs).__name__}")
        if self.loss == "cross_entropy":
            self._check_logits(outputs)
        if y is None:
            return outputs
        if isinstance(self.loss, str):
            if self.loss == "mse":
                self._check_numbers(outputs, y)
            return task_loss(outputs, y, self.loss)
        return self._of_function(self.loss(outputs, y))

    def _check_logits(self, outputs: Tensor) -> None:
        if outputs.ndim != 2 or not outputs.is_floating_point():
            raise ValueError(
                f"{self.learner}: for cross-entropy the model must return floating outputs [n, classes], "
                f"got {outputs.dtype} of shape {list(outputs.shape)}"
            )
        if not torch.compiler.is_compiling():
            self.classes[:] = [outputs.shape[1]]

    def _check_numbers(self, outputs: Tensor, y: Tensor) -> None:
        if outputs.shape != y.shape:
            raise ValueError(
                f"{self.learner}: targets must have the shape of a task's outputs, {list(outputs.shape)}, got {list(y.shape)}"
            )
        if outputs.dtype != y.dtype and not torch.is_autocast_enabled(y.device.type):
            raise TypeError(
                f"{self.learner}: targets must have the dtype of the outputs, {outputs.dtype}, got {y.dtype}"
            )

    def _of_function(self, found: Any) -> Tensor:
        if not isinstance(found, Tensor) or found.ndim:
            came = f"shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{self.learner}: loss must return a 0-dim tensor for the examples of a task, got {came}")
        return found

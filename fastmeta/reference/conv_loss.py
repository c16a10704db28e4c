from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .conv_forward import Params, conv_outputs
from .mlp_loss import Targets, task_loss


def conv_loss(params: Params, inputs: Tensor, targets: Targets, blocks: Sequence[tuple[Any, ...]], loss: str) -> Tensor:
    return task_loss(conv_outputs(params, inputs, blocks), targets, loss)

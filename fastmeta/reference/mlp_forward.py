from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "identity": lambda z: z,
    "silu": F.silu,
    "leaky_relu": F.leaky_relu,
    "sine": torch.sin,
}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[T?, n, in], [T?, out, in], [T?, out] -> [T?, n, out]: x W' + b."""
    z = x @ weight.mT
    return z if bias is None else z + bias.unsqueeze(-2)


def mlp_forward(params: Sequence[Tensor | None], inputs: Tensor, activation: str) -> Tensor:
    """x_l = activation(x_{l-1} W_l' + b_l), the last layer without activation."""
    x = inputs
    for i in range(0, len(params), 2):
        weight = params[i]
        assert weight is not None
        x = linear(x, weight, params[i + 1])
        if i + 2 < len(params):
            x = ACTIVATIONS[activation](x)
    return x

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


RESIDUAL_NORM = " + residual_norm"  # what follows the activation in the word that names a residual block
NORM_EPS = 1e-5
Params = Sequence[Tensor | None]


def parted(params: Params, network: str) -> tuple[Params, Params, str]:
    """The layers' parameters; gamma and beta, or nothing; the activation."""
    activation, is_residual, _ = network.partition(RESIDUAL_NORM)
    return (params[:-2], params[-2:], activation) if is_residual else (params, (), activation)


def normalised(z: Tensor) -> tuple[Tensor, Tensor]:
    """(z - mean) r and r = 1 / sqrt(variance + eps), of rows."""
    centred = z - z.mean(-1, keepdim=True)
    r = (centred.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
    return centred * r, r


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[T?, n, in], [T?, out, in], [T?, out] -> [T?, n, out]: x W' + b."""
    z = x @ weight.mT
    return z if bias is None else z + bias.unsqueeze(-2)


def of_block(inputs: Tensor, xhat: Tensor, norm: Params) -> Tensor:
    """inputs + gamma * xhat + beta."""
    gamma, beta = norm
    assert gamma is not None
    scaled = gamma.unsqueeze(-2) * xhat
    return inputs + (scaled if beta is None else scaled + beta.unsqueeze(-2))


def mlp_forward(params: Params, inputs: Tensor, network: str) -> Tensor:
    """x_l = activation(x_{l-1} W_l' + b_l), the last layer without activation; of a residual block inputs + its norm."""
    layers, norm, activation = parted(params, network)
    x = inputs
    for i in range(0, len(layers), 2):
        weight = layers[i]
        assert weight is not None
        x = linear(x, weight, layers[i + 1])
        if i + 2 < len(layers):
            x = ACTIVATIONS[activation](x)
    return of_block(inputs, normalised(x)[0], norm) if norm else x

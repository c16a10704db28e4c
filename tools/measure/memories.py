"""Inner networks of published programs, each by `torch.func.vmap(grad)`, as its authors write it, and by one op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

import fastmeta


def titans_by_vmap(
    weights: Sequence[Tensor], keys: Tensor, values: Tensor, rates: Tensor, gamma: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The gradient of a memory, an MLP with weights [T, in, out]: of the keys' [T, n, in] errors by the tokens' rates [T, n]. With
    gamma [T, out], as is usual there, a residual block whose norm has the factor 1 + gamma. neural_memory.py of
    lucidrains/titans-pytorch; Behrouz et al. 2024, arXiv:2501.00663."""

    def loss(memory: Sequence[Tensor], keys: Tensor, values: Tensor, rates: Tensor) -> Tensor:
        x = keys
        for i, weight in enumerate(memory[: len(weights)]):
            x = (F.gelu(x) if i else x) @ weight
        x = keys + F.layer_norm(x, x.shape[-1:]) * (1 + memory[-1]) if len(memory) > len(weights) else x
        return ((x - values).pow(2).mean(-1) * rates).sum()

    return vmap(grad(loss))((*weights, *([] if gamma is None else [gamma])), keys, values, rates)


def titans_by_op(
    weights: Sequence[Tensor], keys: Tensor, values: Tensor, rates: Tensor, gamma: Tensor | None = None
) -> tuple[Tensor, ...]:
    params = [p for weight in weights for p in (weight.mT, None)]
    _, found = fastmeta.mlp_grad(
        params if gamma is None else [*params, 1 + gamma, None], keys, values, activation="gelu",
        residual_norm=gamma is not None, loss="mse", weights=keys.shape[1] * rates,
    )  # fmt: skip
    grads = tuple(g.mT for g in found[: len(params)] if g is not None)
    return grads if gamma is None else (*grads, cast(Tensor, found[-2]))


def coin_by_vmap(
    params: Sequence[Tensor], places: Tensor, images: Tensor, rates: Tensor, frequency: float
) -> list[Tensor]:
    """The shifts [T, width] of a sine network's hidden layers [W1, b1, ...] after a step of SGD at each of the rates, from 0, on
    the images [T, n, C] at places [n, 2]: an inner loop of COIN++, Dupont et al. 2022, arXiv:2201.12204."""

    def loss(shifts: Sequence[Tensor], image: Tensor) -> Tensor:
        x = places
        for weight, bias, shift in zip(params[:-2:2], params[1:-2:2], shifts, strict=True):
            x = (frequency * (F.linear(x, weight, bias) + shift)).sin()
        return (F.linear(x, params[-2], params[-1]) - image).square().mean()

    shifts = tuple(b.new_zeros(len(images), *b.shape) for b in params[1:-2:2])
    for rate in rates:
        steps = vmap(grad(loss))(shifts, images)
        shifts = tuple(shift - rate * step for shift, step in zip(shifts, steps, strict=True))
    return [*shifts]


def coin_by_op(
    params: Sequence[Tensor], places: Tensor, images: Tensor, rates: Tensor, frequency: float
) -> list[Tensor]:
    """The frequency is a factor of weights and biases: a step of a shift is frequency^2 times one of its bias."""
    hidden = [frequency * p for p in params[:-2]]
    lr = [frequency**2 * rates if i % 2 else torch.zeros_like(rates) for i in range(len(hidden))]
    lr += [torch.zeros_like(rates)] * 2
    adapted = fastmeta.mlp_adapt(
        [*hidden, *params[-2:]], lr, places.expand(len(images), *places.shape), images, steps=len(rates), activation="sine",
        loss="mse",
    )  # fmt: skip
    return [(after - before) / frequency for after, before in zip(adapted[1:-2:2], hidden[1::2], strict=True)]

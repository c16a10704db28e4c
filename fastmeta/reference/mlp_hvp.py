from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .mlp_forward import ACTIVATIONS, linear
from .mlp_grad import backpropagate, derivative, output_gradient, scaled, through
from .mlp_loss import IGNORE_INDEX, Targets, weighting


def second_derivative(z: Tensor, activation: str) -> Tensor | None:
    """activation''(z); None where it is 0 everywhere."""
    if activation == "tanh":
        return -2 * torch.tanh(z) * derivative(z, activation)
    if activation == "sigmoid":
        return derivative(z, activation) * (1 - 2 * torch.sigmoid(z))
    if activation == "gelu":
        return (2 - z * z) * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    if activation == "silu":
        s = torch.sigmoid(z)
        return s * (1 - s) * (2 + z * (1 - 2 * s))
    return -torch.sin(z) if activation == "sine" else None


def output_tangent(outputs: Tensor, tangent: Tensor, targets: Targets, loss: str) -> Tensor:
    """The derivative of `output_gradient` along a tangent of the outputs: H_out times the tangent."""
    targets, weights = weighting(targets, loss)
    if loss == "mse":
        return 2 * scaled(tangent, weights) / max(outputs.shape[-2] * outputs.shape[-1], 1)
    p = outputs.softmax(-1)
    counted = targets != IGNORE_INDEX
    change = p * (tangent - (p * tangent).sum(-1, keepdim=True)) * counted.unsqueeze(-1).to(p.dtype)
    out_of_range = counted & ((targets < 0) | (targets >= outputs.shape[-1]))
    change = scaled(torch.where(out_of_range.unsqueeze(-1), torch.nan, change), weights)
    return change / counted.sum(-1).clamp(min=1)[..., None, None]


def mlp_hvp(
    params: Sequence[Tensor | None],
    vectors: Sequence[Tensor | None],
    inputs: Tensor,
    targets: Targets,
    activation: str,
    loss: str,
    curvature: str,
) -> list[Tensor | None]:
    """H v for each task: the forward and backward pass of `mlp_grad`, differentiated along v (r...: tangents); "ggn": the
    tangent of dL/dz, sent back through the plain backward pass, J' (H_out (J v))."""
    layers = len(params) // 2
    weights, dweights = _weights(params), _weights(vectors)
    xs, rxs = [inputs], [torch.zeros_like(inputs)]
    zs, rzs = [], []
    for i in range(layers):
        zs.append(linear(xs[i], weights[i], params[2 * i + 1]))
        rzs.append(linear(rxs[i], weights[i], None) + linear(xs[i], dweights[i], vectors[2 * i + 1]))
        if i + 1 < layers:
            xs.append(ACTIVATIONS[activation](zs[i]))
            rxs.append(through(rzs[i], zs[i], activation))
    rdz = output_tangent(zs[-1], rzs[-1], targets, loss)
    if curvature == "ggn":
        return backpropagate(params, xs, zs, rdz, activation)
    products: list[Tensor | None] = [None] * len(params)
    dz = output_gradient(zs[-1], targets, loss)
    for i in reversed(range(layers)):
        products[2 * i] = rdz.mT @ xs[i] + dz.mT @ rxs[i]
        products[2 * i + 1] = None if params[2 * i + 1] is None else rdz.sum(-2)
        if i:
            z, bend = zs[i - 1], second_derivative(zs[i - 1], activation)
            dx, rdx = dz @ weights[i], rdz @ weights[i] + dz @ dweights[i]
            dz, rdz = through(dx, z, activation), through(rdx, z, activation)
            rdz = rdz if bend is None else rdz + dx * bend * rzs[i - 1]
    return products


def _weights(params: Sequence[Tensor | None]) -> list[Tensor]:
    return [p for p in params[::2] if p is not None]

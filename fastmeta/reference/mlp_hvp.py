from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .mlp_forward import ACTIVATIONS, linear
from .mlp_grad import backpropagate, derivative, output_gradient, through, times_weights
from .mlp_loss import IGNORE_INDEX


def second_derivative(z: Tensor, activation: str) -> Tensor | None:
    """activation''(z); None where it is 0 everywhere."""
    if activation == "tanh":
        return -2 * torch.tanh(z) * derivative(z, activation)
    if activation == "sigmoid":
        return derivative(z, activation) * (1 - 2 * torch.sigmoid(z))
    if activation == "gelu":
        return (2 - z * z) * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return None


def output_tangent(
    outputs: Tensor, tangent: Tensor, targets: Tensor, loss: str, weights: Tensor | None = None
) -> Tensor:
    """The derivative of `output_gradient` along a tangent of the outputs: H_out times the tangent."""
    if loss == "mse":
        return 2 * times_weights(tangent, weights, targets, loss) / max(outputs.shape[-2] * outputs.shape[-1], 1)
    p = outputs.softmax(-1)
    counted = targets != IGNORE_INDEX
    change = p * (tangent - (p * tangent).sum(-1, keepdim=True)) * counted.unsqueeze(-1).to(p.dtype)
    out_of_range = counted & ((targets < 0) | (targets >= outputs.shape[-1]))
    change = times_weights(torch.where(out_of_range.unsqueeze(-1), torch.nan, change), weights, targets, loss)
    return change / counted.sum(-1).clamp(min=1)[..., None, None]


def mlp_hvp(
    params: Sequence[Tensor | None],
    vectors: Sequence[Tensor | None],
    inputs: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    activation: str,
    loss: str,
    curvature: str,
) -> list[Tensor | None]:
    """H v for each task: the forward and backward pass of `mlp_grad`, differentiated along v (r...: tangents); "ggn": the
    tangent of dL/dz, sent back through the plain backward pass, J' (H_out (J v))."""
    layers = len(params) // 2
    ws, vs = _matrices(params), _matrices(vectors)
    xs, rxs = [inputs], [torch.zeros_like(inputs)]
    zs, rzs = [], []
    for i in range(layers):
        zs.append(linear(xs[i], ws[i], params[2 * i + 1]))
        rzs.append(linear(rxs[i], ws[i], None) + linear(xs[i], vs[i], vectors[2 * i + 1]))
        if i + 1 < layers:
            xs.append(ACTIVATIONS[activation](zs[i]))
            rxs.append(through(rzs[i], zs[i], activation))
    rdz = output_tangent(zs[-1], rzs[-1], targets, loss, weights)
    if curvature == "ggn":
        return backpropagate(params, xs, zs, rdz, activation)
    products: list[Tensor | None] = [None] * len(params)
    dz = output_gradient(zs[-1], targets, loss, weights)
    for i in reversed(range(layers)):
        products[2 * i] = rdz.mT @ xs[i] + dz.mT @ rxs[i]
        products[2 * i + 1] = None if params[2 * i + 1] is None else rdz.sum(-2)
        if i:
            z, bend = zs[i - 1], second_derivative(zs[i - 1], activation)
            dx, rdx = dz @ ws[i], rdz @ ws[i] + dz @ vs[i]
            dz, rdz = through(dx, z, activation), through(rdx, z, activation)
            rdz = rdz if bend is None else rdz + dx * bend * rzs[i - 1]
    return products


def _matrices(params: Sequence[Tensor | None]) -> list[Tensor]:
    return [p for p in params[::2] if p is not None]

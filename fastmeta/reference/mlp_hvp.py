from __future__ import annotations

import math

import torch
from torch import Tensor

from .mlp_forward import ACTIVATIONS, Params, linear, normalised, of_block, parted
from .mlp_grad import backpropagate, derivative, output_gradient, scaled, through, through_block, through_norm
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
    params: Params,
    vectors: Params,
    inputs: Tensor,
    targets: Targets,
    network: str,
    loss: str,
    curvature: str,
) -> list[Tensor | None]:
    """H v for each task: the forward and backward pass of `mlp_grad`, differentiated along v (r...: tangents); "ggn": the
    tangent of dL/dz, sent back through the plain backward pass, J' (H_out (J v))."""
    layers, norm, activation = parted(params, network)
    directions, rnorm, _ = parted(vectors, network)
    count = len(layers) // 2
    weights, dweights = _weights(layers), _weights(directions)
    xs, rxs = [inputs], [torch.zeros_like(inputs)]
    zs, rzs = [], []
    for i in range(count):
        zs.append(linear(xs[i], weights[i], layers[2 * i + 1]))
        rzs.append(linear(rxs[i], weights[i], None) + linear(xs[i], dweights[i], directions[2 * i + 1]))
        if i + 1 < count:
            xs.append(ACTIVATIONS[activation](zs[i]))
            rxs.append(through(rzs[i], zs[i], activation))
    if norm:
        dz, rdz, of_norm = _norm_products(zs[-1], rzs[-1], norm, rnorm, inputs, targets, loss, curvature)
    else:
        dz, rdz = output_gradient(zs[-1], targets, loss), output_tangent(zs[-1], rzs[-1], targets, loss)
        of_norm = []
    if curvature == "ggn":
        return backpropagate(layers, xs, zs, rdz, activation) + of_norm
    products: list[Tensor | None] = [None] * len(layers)
    for i in reversed(range(count)):
        products[2 * i] = rdz.mT @ xs[i] + dz.mT @ rxs[i]
        products[2 * i + 1] = None if layers[2 * i + 1] is None else rdz.sum(-2)
        if i:
            z, bend = zs[i - 1], second_derivative(zs[i - 1], activation)
            dx, rdx = dz @ weights[i], rdz @ weights[i] + dz @ dweights[i]
            dz, rdz = through(dx, z, activation), through(rdx, z, activation)
            rdz = rdz if bend is None else rdz + dx * bend * rzs[i - 1]
    return products + of_norm


def _norm_products(
    z: Tensor, rz: Tensor, norm: Params, rnorm: Params, inputs: Tensor, targets: Targets, loss: str, curvature: str
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Of a residual block's norm: dz, its tangent, the products for gamma and beta; as csrc/inner/cpu/residual_norm.h derives them.
    "ggn": what the tangent of the outputs' gradient alone gives."""
    gamma, rgamma = norm[0], rnorm[0]
    assert gamma is not None and rgamma is not None
    xhat, r = normalised(z)
    rxhat = through_norm(rz, xhat, r)
    outputs = of_block(inputs, xhat, norm)
    routputs = of_block(gamma.unsqueeze(-2) * rxhat, xhat, rnorm)
    d, rd = output_gradient(outputs, targets, loss), output_tangent(outputs, routputs, targets, loss)
    dz, _ = through_block(d, xhat, r, norm)
    if curvature == "ggn":
        return dz, *through_block(rd, xhat, r, norm)
    g, rg = gamma.unsqueeze(-2) * d, gamma.unsqueeze(-2) * rd + rgamma.unsqueeze(-2) * d
    along, turned = ((g * x).mean(-1, keepdim=True) for x in (xhat, rxhat))
    rdz = through_norm(rg, xhat, r) - r * (rxhat * along + xhat * turned)
    rdz = rdz - r * (xhat * rz).mean(-1, keepdim=True) * dz
    return dz, rdz, [(rd * xhat + d * rxhat).sum(-2), None if norm[1] is None else rd.sum(-2)]


def _weights(params: Params) -> list[Tensor]:
    return [p for p in params[::2] if p is not None]

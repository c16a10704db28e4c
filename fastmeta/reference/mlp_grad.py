from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .mlp_forward import ACTIVATIONS, Params, linear, normalised, of_block, parted
from .mlp_loss import IGNORE_INDEX, Targets, task_loss, weighting


def derivative(z: Tensor, activation: str) -> Tensor:
    """activation'(z) of any but ReLU, from primitives, so that it can be differentiated again."""
    if activation == "tanh":
        return 1 - torch.tanh(z).square()
    if activation == "sigmoid":
        return torch.sigmoid(z) * (1 - torch.sigmoid(z))
    if activation == "gelu":
        return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    if activation == "silu":
        s = torch.sigmoid(z)
        return s * (1 + z * (1 - s))
    if activation == "sine":
        return torch.cos(z)
    slope = torch.ones_like(z)
    return slope.where(z > 0, 0.01) if activation == "leaky_relu" else slope


def through(d: Tensor, z: Tensor, activation: str) -> Tensor:
    """d activation'(z); as PyTorch's, ReLU's lets nothing pass where z <= 0, no NaN either, and all where z is NaN."""
    return torch.where(z <= 0, 0, d) if activation == "relu" else d * derivative(z, activation)


def scaled(x: Tensor, weights: Tensor | None) -> Tensor:
    """The examples of x [T?, n, C] times their weights [T?, n]."""
    return x if weights is None else x * weights.unsqueeze(-1)


def output_gradient(outputs: Tensor, targets: Targets, loss: str) -> Tensor:
    """d(task loss)/d(outputs), [T?, n, C]."""
    classes, (targets, weights) = outputs.shape[-1], weighting(targets, loss)
    if loss == "mse":
        difference = scaled(outputs - targets, weights)
        return 2 * difference / max(outputs.shape[-2] * classes, 1)  # not 2 / n: of float32 under torch.jit.trace
    counted = targets != IGNORE_INDEX
    # Not F.one_hot: that fails in a vmap of a vjp.
    is_target = targets.unsqueeze(-1) == torch.arange(classes, device=targets.device)
    residual = (outputs.softmax(-1) - is_target.to(outputs.dtype)) * counted.unsqueeze(-1).to(outputs.dtype)
    residual = torch.where(((targets >= 0) & (targets < classes) | ~counted).unsqueeze(-1), residual, torch.nan)
    return scaled(residual, weights) / counted.sum(-1).clamp(min=1)[..., None, None]


def backpropagate(
    params: Params, xs: Sequence[Tensor], zs: Sequence[Tensor], dz: Tensor, activation: str
) -> list[Tensor | None]:
    """J' dz, J the Jacobian of the outputs in the parameters; xs, zs: what each layer takes and gives before its activation."""
    grads: list[Tensor | None] = [None] * len(params)
    for i in reversed(range(len(zs))):
        weight = params[2 * i]
        assert weight is not None
        grads[2 * i] = dz.mT @ xs[i]
        grads[2 * i + 1] = None if params[2 * i + 1] is None else dz.sum(-2)
        if i:
            dz = through(dz @ weight, zs[i - 1], activation)
    return grads


def through_norm(g: Tensor, xhat: Tensor, r: Tensor) -> Tensor:
    """g J, J the Jacobian of a norm's xhat in its rows; J is symmetric, so J g too."""
    return r * (g - g.mean(-1, keepdim=True) - xhat * (g * xhat).mean(-1, keepdim=True))


def through_block(d: Tensor, xhat: Tensor, r: Tensor, norm: Params) -> tuple[Tensor, list[Tensor | None]]:
    """The adjoint of a residual block's last layer, and those of gamma and beta, from that of its outputs."""
    gamma, beta = norm
    assert gamma is not None
    dz = through_norm(gamma.unsqueeze(-2) * d, xhat, r)
    return dz, [(d * xhat).sum(-2), None if beta is None else d.sum(-2)]


def mlp_grad(
    params: Params, inputs: Tensor, targets: Targets, network: str, loss: str
) -> tuple[Tensor, list[Tensor | None]]:
    """Each task's loss [T?] and its gradients, one [T?, ...] for each parameter, by backpropagation written out."""
    layers, norm, activation = parted(params, network)
    xs, zs, count = [inputs], [], len(layers) // 2
    for i in range(count):
        weight = layers[2 * i]
        assert weight is not None
        zs.append(linear(xs[i], weight, layers[2 * i + 1]))
        xs.append(ACTIVATIONS[activation](zs[i]) if i + 1 < count else zs[i])
    if not norm:
        dz = output_gradient(zs[-1], targets, loss)
        return task_loss(zs[-1], targets, loss), backpropagate(layers, xs, zs, dz, activation)
    xhat, r = normalised(zs[-1])
    outputs = of_block(inputs, xhat, norm)
    dz, of_norm = through_block(output_gradient(outputs, targets, loss), xhat, r, norm)
    return task_loss(outputs, targets, loss), backpropagate(layers, xs, zs, dz, activation) + of_norm

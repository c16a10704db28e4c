"""The ops of networks and inner loops as their papers define them, for one task in plain PyTorch; see formulas.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .formulas import each_task, mean_loss

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": lambda x: x / 2 * (1 + torch.erf(x / math.sqrt(2))),
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}


class Network(NamedTuple):
    outputs: Callable[[Sequence[Any], Tensor], Tensor]  # of one task's parameters and inputs
    ranks: tuple[int, ...]  # of one task's parameters, in turn
    example_rank: int  # of one task's inputs


def mlp(activation: str) -> Network:
    def outputs(params: Sequence[Any], x: Tensor) -> Tensor:
        for i in range(0, len(params), 2):
            x = (ACTIVATIONS[activation](x) if i else x) @ params[i].T
            x = x if params[i + 1] is None else x + params[i + 1]
        return x

    return Network(outputs, (2, 1), 2)


def convnet(blocks: Sequence[Any]) -> Network:
    def outputs(params: Sequence[Any], x: Tensor) -> Tensor:
        for i, block in enumerate(blocks):
            weight, bias, gamma, beta = params[4 * i : 4 * i + 4]
            x = convolution(x, weight, block.stride, block.padding)
            x = x if bias is None else x + bias[:, None, None]
            if block.norm is not None:
                x = normed(x, block.norm, block.eps)
            x = x if gamma is None else x * gamma[:, None, None]
            x = x if beta is None else x + beta[:, None, None]
            x = x.relu() if block.relu else x
            x = F.max_pool2d(x, block.pool)
        return F.linear(x.flatten(1), params[-2], params[-1])

    return Network(outputs, (*((4, 1, 1, 1) * len(blocks)), 2, 1), 4)


def convolution(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Tap by tap: of torch's own, with a stride, there is no third derivative."""
    x = F.pad(x, [padding] * 4)
    rows, columns = (side - 2 for side in x.shape[2:])
    taps = [
        torch.einsum("oi,nihw->nohw", weight[:, :, r, s], x[:, :, r : r + rows : stride, s : s + columns : stride])
        for r in range(3)
        for s in range(3)
    ]
    return torch.stack(taps).sum(0)


def normed(x: Tensor, norm: str | int, eps: float) -> Tensor:
    """Ioffe and Szegedy 2015; Wu and He 2018."""
    sets = x.movedim(1, 0).flatten(1) if norm == "batch" else x.unflatten(1, (int(norm), -1)).flatten(2).flatten(0, 1)
    sets = (sets - sets.mean(1, keepdim=True)) / (sets.var(1, correction=0, keepdim=True) + eps).sqrt()
    return sets.reshape(x.shape[1], len(x), *x.shape[2:]).movedim(0, 1) if norm == "batch" else sets.reshape(x.shape)


def outputs_loss(z: Tensor, y: Tensor, loss: str) -> Tensor:
    if loss == "mse":
        return (z - y).square().sum() / max(z.numel(), 1)
    return mean_loss(torch.log_softmax(z, 1), y)


def of_tasks(one: Callable, net: Network, params: Sequence[Any], *args: Tensor, loss: str = "cross_entropy") -> Any:
    """one(params, *args) of every task; the arguments are inputs and targets in turn."""
    count, of_targets = len(params), 2 if loss == "mse" else 1
    ranks = [net.ranks[i % len(net.ranks)] for i in range(count)]
    ranks += [of_targets if i % 2 else net.example_rank for i in range(len(args))]
    return each_task(lambda *a: one(list(a[:count]), *a[count:]), ranks, *params, *args)


def present(values: Sequence[Any]) -> list[Any]:
    return [v for v in values if v is not None]


def gradient(fn: Callable[[list[Any]], Tensor], params: Sequence[Any], cotangent: Tensor | None = None) -> list[Any]:
    """dfn/dparams, differentiable, None where a parameter is None."""
    with torch.enable_grad():
        at = [p if p is None or p.requires_grad else p.detach().requires_grad_() for p in params]
        options = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
        found = iter(torch.autograd.grad(fn(at), present(at), cotangent, **options))
    return [None if p is None else next(found) for p in at]


def inner(a: Sequence[Any], b: Sequence[Any]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True) if x is not None]).sum()


def forward(net: Network, params: Sequence[Any], inputs: Tensor) -> Tensor:
    return of_tasks(net.outputs, net, params, inputs)


def loss_of(net: Network, params: Sequence[Any], inputs: Tensor, targets: Tensor, loss: str) -> Tensor:
    def one(p: list[Any], x: Tensor, y: Tensor) -> Tensor:
        return outputs_loss(net.outputs(p, x), y, loss)

    return of_tasks(one, net, params, inputs, targets, loss=loss)


def grad(net: Network, params: Sequence[Any], inputs: Tensor, targets: Tensor, loss: str) -> list[Tensor]:
    def one(p: list[Any], x: Tensor, y: Tensor) -> list[Tensor]:
        def value(p: list[Any]) -> Tensor:
            return outputs_loss(net.outputs(p, x), y, loss)

        return [value(p), *present(gradient(value, p))]

    return of_tasks(one, net, params, inputs, targets, loss=loss)


def product(
    net: Network,
    params: Sequence[Any],
    vectors: Sequence[Any],
    inputs: Tensor,
    targets: Tensor,
    loss: str,
    curvature: str,
) -> list[Tensor]:
    """H v, as the derivative of g . v; "ggn": J' H_out J v (Schraudolph 2002)."""

    def one(both: list[Any], x: Tensor, y: Tensor) -> list[Tensor]:
        p, v = both[: len(params)], both[len(params) :]
        if curvature == "ggn":
            return present(gauss_newton(lambda p: net.outputs(p, x), p, v, y, loss))
        return present(hessian(lambda p: outputs_loss(net.outputs(p, x), y, loss), p, v))

    return of_tasks(one, net, [*params, *vectors], inputs, targets, loss=loss)


def hessian(fn: Callable[[list[Any]], Tensor], p: list[Any], v: Sequence[Any]) -> list[Any]:
    return gradient(lambda p: inner(gradient(fn, p), v), p)


def gauss_newton(outputs: Callable[[list[Any]], Tensor], p: list[Any], v: list[Any], y: Tensor, loss: str) -> list[Any]:
    z = outputs(p)
    zero = torch.zeros_like(z).requires_grad_()  # J v is the derivative of (J' u) . v with respect to u
    (jv,) = gradient(lambda u: inner(gradient(lambda p: (outputs(p) * u[0]).sum(), p), v), [zero])
    if loss == "mse":
        curved = jv * 2 / max(z.numel(), 1)
    else:
        prob, counted = z.softmax(1), y != -100
        curved = prob * (jv - (prob * jv).sum(1, keepdim=True)) * counted[:, None] / max(int(counted.sum()), 1)
    return gradient(outputs, p, curved)


def rate_at(lr: Any, i: int, k: int) -> Any:
    """The rate of parameter i in step k: of a list, the first tells whether there is one for each step."""
    first, rate = (lr[0], lr[i]) if isinstance(lr, list | tuple) else (lr, lr)
    return rate[k] if isinstance(first, Tensor) and first.ndim % 2 == 1 else rate


def descend(p: list[Any], fn: Callable[[list[Any]], Tensor], lr: Any, steps: int, first_order: bool) -> list[Any]:
    """Finn et al. 2017, Li et al. 2017; `first_order`: the slopes are constants."""
    for k in range(steps):
        slopes = [g.detach() if g is not None and first_order else g for g in gradient(fn, p)]
        p = [None if q is None else q - rate_at(lr, i, k) * g for i, (q, g) in enumerate(zip(p, slopes, strict=True))]
    return p


def adapt(
    net: Network,
    params: Sequence[Any],
    lr: Any,
    inputs: Tensor,
    targets: Tensor,
    steps: int,
    loss: str,
    first_order: bool,
) -> list[Tensor]:
    def one(p: list[Any], x: Tensor, y: Tensor) -> list[Tensor]:
        support = lambda p: outputs_loss(net.outputs(p, x), y, loss)  # noqa: E731
        return present(descend(p, support, lr, steps, first_order))

    return of_tasks(one, net, params, inputs, targets, loss=loss)


def meta_loss(
    net: Network, params: Sequence[Any], lr: Any, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor,
    steps: int, loss: str, first_order: bool,
) -> Tensor:  # fmt: skip
    def one(p: list[Any], sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        p = descend(p, lambda p: outputs_loss(net.outputs(p, sx), sy, loss), lr, steps, first_order)
        return outputs_loss(net.outputs(p, qx), qy, loss)

    return of_tasks(one, net, params, support_x, support_y, query_x, query_y, loss=loss)


OF_NETWORKS: dict[str, Callable] = {
    "forward": forward, "loss": loss_of, "grad": grad, "hvp": product, "adapt": adapt, "meta_loss": meta_loss,
}  # fmt: skip


def formula(name: str) -> Callable:
    """Of an op of networks, such as mlp_loss; with its arguments."""
    family, _, op = name.partition("_")

    def of(**arguments: Any) -> Any:
        net = mlp(arguments.pop("activation")) if family == "mlp" else convnet(arguments.pop("blocks"))
        return OF_NETWORKS[op](net, **arguments)

    return of


def hvp(fn: Callable[[Any], Tensor], params: dict[str, Tensor], vectors: dict[str, Tensor]) -> list[Tensor]:
    as_dict = lambda values: fn(dict(zip(params, values, strict=True)))  # noqa: E731
    return hessian(as_dict, list(params.values()), [vectors[n] for n in params])

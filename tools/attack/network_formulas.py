"""The ops of networks, and inner loops, as their papers define them, for one task in plain PyTorch; see op_formulas.py."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

import fastmeta

from .op_formulas import each_task, mean_loss

ACTIVATIONS = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": lambda x: x / 2 * (1 + torch.erf(x / math.sqrt(2))),
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
    "silu": lambda x: x * torch.sigmoid(x),
    "leaky_relu": lambda x: torch.where(x > 0, x, x / 100),
    "sine": torch.sin,
}


def mlp(activation, count, residual):
    """The outputs of one task's `count` parameters and inputs; the ranks of its parameters, in turn, and of its inputs."""

    def outputs(params, x):
        given = x
        for i in range(0, count - 2 * residual, 2):
            x = (ACTIVATIONS[activation](x) if i else x) @ params[i].T
            x = x if params[i + 1] is None else x + params[i + 1]
        if not residual:
            return x
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        x = given + params[-2] * (x - mean) / (variance + 1e-5).sqrt()
        return x if params[-1] is None else x + params[-1]

    return outputs, (*(2, 1) * (count // 2 - residual), *(1, 1) * residual), 2


def convnet(blocks):
    def outputs(params, x):
        read = []
        for i, block in enumerate(blocks):
            weight, *each = params[4 * i : 4 * i + 4]
            bias, gamma, beta = (v if v is None else v[:, None, None] for v in each)
            read.append(read[i - block.skip] if block.skip else x)
            before, x = x, convolution(read[i], weight, block.stride, block.padding)
            x = x if bias is None else x + bias
            x = x if block.norm is None else normed(x, block.norm, block.eps)
            x = x if gamma is None else x * gamma
            x = x if beta is None else x + beta
            x = x + before if block.skip else x
            x = (F.leaky_relu(x, block.slope) if block.slope else x.relu()) if block.relu else x
            x = x.mean((2, 3), keepdim=True) if block.pool == "mean" else F.max_pool2d(x, block.pool)
        return x.flatten(1) if params[-2] is None else F.linear(x.flatten(1), params[-2], params[-1])

    return outputs, (*((4, 1, 1, 1) * len(blocks)), 2, 1), 4


def convolution(x, weight, stride, padding):
    """Tap by tap: of torch's own, with a stride, there is no third derivative."""
    x = F.pad(x, [padding] * 4)
    rows, columns = (side + 1 - len(weight[0, 0]) for side in x.shape[2:])
    total = 0
    for r, s in itertools.product(range(len(weight[0, 0])), repeat=2):
        pixels = x[:, :, r : r + rows : stride, s : s + columns : stride]
        total = total + torch.einsum("oi,nihw->nohw", weight[:, :, r, s], pixels)
    return total


def normed(x, norm, eps):
    """Ioffe and Szegedy 2015; Wu and He 2018."""
    sets = x.movedim(1, 0).flatten(1) if norm == "batch" else x.unflatten(1, (int(norm), -1)).flatten(2).flatten(0, 1)
    sets = (sets - sets.mean(1, keepdim=True)) / (sets.var(1, correction=0, keepdim=True) + eps).sqrt()
    return sets.reshape(x.shape[1], len(x), *x.shape[2:]).movedim(0, 1) if norm == "batch" else sets.reshape(x.shape)


def outputs_loss(z, y, loss, weights=None):
    """`loss`: "mse", "cross_entropy" or a function. `weights`: of the examples."""
    if callable(loss):
        return loss(z, y)
    if loss == "mse":
        return weighted((z - y).square(), y, loss, weights).sum() / max(z.numel(), 1)
    losses = mean_loss(torch.log_softmax(z, 1), y, reduction="none")
    return weighted(losses[:, None], y, loss, weights).sum() / max(int((y != -100).sum()), 1)


def weighted(rows, y, loss, weights):
    if weights is None:
        return rows
    return rows * (weights if loss == "mse" else torch.where(y != -100, weights, 0))[:, None]


def present(values):
    return [v for v in values if v is not None]


def gradient(fn, params, cotangent=None):
    """dfn/dparams, differentiable, None where a parameter is None."""
    with torch.enable_grad():
        at = [p if p is None or p.requires_grad else p.detach().requires_grad_() for p in params]
        options = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
        found = iter(torch.autograd.grad(fn(at), present(at), cotangent, **options) if present(at) else ())
    return [None if p is None else next(found) for p in at]


def inner(a, b):
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True) if x is not None]).sum()


def hessian(fn, p, v):
    """H v, as the derivative of g . v."""
    return gradient(lambda p: inner(gradient(fn, p), v), p)


def gauss_newton(outputs, p, v, y, loss, weights):
    """J' H_out J v (Schraudolph 2002)."""
    z = outputs(p)
    zero = torch.zeros_like(z).requires_grad_()  # J v is the derivative of (J' u) . v with respect to u
    (jv,) = gradient(lambda u: inner(gradient(lambda p: (outputs(p) * u[0]).sum(), p), v), [zero])
    if loss == "mse":
        return gradient(outputs, p, weighted(jv, y, loss, weights) * 2 / max(z.numel(), 1))
    prob, counted = z.softmax(1), y != -100
    curved = prob * (jv - (prob * jv).sum(1, keepdim=True)) * counted[:, None] / max(int(counted.sum()), 1)
    return gradient(outputs, p, weighted(curved, y, loss, weights))


def rate_at(lr, i, k):
    """The rate of parameter i in step k: of a list, the first tells whether there is one for each step."""
    first, rate = (lr[0], lr[i]) if isinstance(lr, list | tuple) else (lr, lr)
    return rate[k] if isinstance(first, Tensor) and first.ndim % 2 == 1 else rate


def descend(q, g, rate, k, state):
    return q - rate * g, state


def nesterov(q, g, rate, k, b):
    """Sutskever et al. 2013 as torch.optim.SGD has it: momentum 0.7, decay 0.2."""
    g = g + 0.2 * q
    b = 0.7 * b + g
    return q - rate * (g + 0.7 * b), b


def adam(q, g, rate, k, state):
    """Kingma and Ba 2015: betas 0.7 and 0.8, eps 0.1, decay 0.2 as torch.optim.Adam has it."""
    m, v = state if k else (0, 0)
    g = g + 0.2 * q
    m, v = 0.7 * m + 0.3 * g, 0.8 * v + 0.2 * g**2
    root = torch.where(v > 0, torch.where(v > 0, v / (1 - 0.8 ** (k + 1)), 1).sqrt(), 0)
    return q - rate * m / (1 - 0.7 ** (k + 1)) / (root + 0.1), (m, v)


OPTIMISERS = {  # the formula of a step; what fastmeta has for it
    None: (descend, lambda lr: lr),
    "nesterov": (nesterov, lambda lr: fastmeta.SGD(lr, 0.7, 0.2, True)),
    "adam": (adam, lambda lr: fastmeta.Adam(lr, (0.7, 0.8), 0.1, 0.2)),
}


def path(p, fn, rate, steps, first_order, step=descend):
    """p before the first step on fn and after each (Finn et al. 2017, Li et al. 2017); fn(p, k): in step k; `first_order`: slopes are
    constants; rate(i, k): of parameter i in step k."""
    found, states = [p], [0] * len(p)
    for k in range(steps):
        slopes = [g.detach() if g is not None and first_order else g for g in gradient(lambda p, k=k: fn(p, k), p)]
        made = [
            (q, 0) if q is None else step(q, g, rate(i, k), k, s)
            for i, (q, g, s) in enumerate(zip(p, slopes, states, strict=True))
        ]
        p, states = [q for q, _ in made], [s for _, s in made]
        found.append(p)
    return found


def formula(name):
    """Of an op of networks, such as mlp_loss; with its arguments."""
    family, _, op = name.partition("_")

    def of(
        params, loss="cross_entropy", lr=0.0, steps=0, first_order=False, curvature="", vectors=(), weights=None,
        query_weights=None, optimiser=None, batch_per_step=False, **arguments,
    ):  # fmt: skip
        if family == "mlp":
            outputs, ranks, rank = mlp(arguments.pop("activation"), len(params), arguments.pop("residual_norm", False))
        else:
            outputs, ranks, rank = convnet(arguments.pop("blocks"))
        count, of_params = len(params), [ranks[i % len(ranks)] for i in range(len(params) + len(vectors))]
        of_examples = [(2 if loss == "mse" else 1) if i % 2 else rank for i in range(len(arguments))]
        examples, of_weights = list(arguments.values()), 1 + batch_per_step
        if batch_per_step:
            of_examples[:2] = [1 + of for of in of_examples[:2]]
            examples[:2] = [x.movedim(0, x.ndim - of) for x, of in zip(examples, of_examples[:2], strict=False)]
            weights = None if weights is None else weights.movedim(0, weights.ndim - 2)

        def one(*tensors):
            p, v, (*examples, w, of_query) = tensors[:count], tensors[count : len(of_params)], tensors[len(of_params) :]

            def value(p, x=examples[0], y=examples[-1], w=w):
                return outputs_loss(outputs(p, x), y, loss, w)

            if op == "forward":
                return outputs(p, *examples)
            if op == "loss":
                return value(p)
            if op == "grad":
                return [value(p), *present(gradient(value, p))]
            if op == "hvp" and curvature == "ggn":
                return present(gauss_newton(lambda p: outputs(p, examples[0]), p, v, examples[1], loss, w))
            if op == "hvp":
                return present(hessian(value, p, v))

            def support(p, k):
                batch = [*examples[:2], w]
                return value(p, *(x if x is None or not batch_per_step else x[k] for x in batch))

            p = path(p, support, lambda i, k: rate_at(lr, i, k), steps, first_order, OPTIMISERS[optimiser][0])[-1]
            return present(p) if op == "adapt" else value(p, *examples[2:], of_query)

        ranks = [*of_params, *of_examples, of_weights, 1]
        return each_task(one, ranks, *params, *vectors, *examples, weights, query_weights)

    return of


def hvp(fn, params, vectors):
    as_dict = lambda values: fn(dict(zip(params, values, strict=True)))  # noqa: E731
    return hessian(as_dict, list(params.values()), [vectors[n] for n in params])

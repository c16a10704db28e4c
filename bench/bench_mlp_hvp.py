from functools import partial

import pytest
import torch

import fastmeta
from measure import flops
from measure.contenders import compiled, mlp, on_backends
from measure.inner_loops import forward, layer_inputs, linear, output_gradient, outputs, total_loss

WORKLOADS = {  # widths, tasks, examples
    "W6 softmax regression 32 x (25, 640, 5)": ((640, 5), 32, 25),
    "W6 MLP 784-64-64-10 n100, 1 task": ((784, 64, 64, 10), 1, 100),
    "W6 MLP 784-64-64-10 n100, 32 tasks": ((784, 64, 64, 10), 32, 100),
}


@pytest.mark.parametrize("name", WORKLOADS)
def bench_mlp_hvp(race, name):
    """H v of each task at parameters of its own; one task has no task axis."""
    widths, tasks, examples = WORKLOADS[name]
    params, x, y = mlp(widths, tasks, examples, widths[-1])
    params = [p.detach() + 0.1 * torch.randn(tasks, *p.shape) for p in params]
    arguments = params, [torch.randn_like(p) for p in params], x, y
    if tasks == 1:
        arguments = *([t[0] for t in tensors] for tensors in arguments[:2]), x[0], y[0]
    eager = WAYS | {"double backward": by_double_backward}  # which torch.compile cannot trace
    race(
        f"mlp_hvp {name}",
        on_backends(lambda: fastmeta.mlp_hvp(*arguments)) | {way: partial(fn, *arguments) for way, fn in eager.items()},
        compiled={
            f"compiled {way} {kind}".strip(): partial(compiled(fn, inductor), *arguments)
            for way, fn in WAYS.items()
            for kind, inductor in {"": None, "cpp-wrapper": {"cpp_wrapper": True}}.items()
        },
        floor=(0, tasks * flops.hvp(widths, examples)),
    )


@pytest.mark.parametrize("name", WORKLOADS)
def bench_mlp_hvp_ggn(race, name):
    """The Gauss-Newton product on each backend."""
    widths, tasks, examples = WORKLOADS[name]
    params, x, y = mlp(widths, tasks, examples, widths[-1])
    params = [p.detach() for p in params]
    vectors = [torch.randn(tasks, *p.shape) for p in params]
    race(
        f"mlp_hvp ggn {name}",
        on_backends(lambda: fastmeta.mlp_hvp(params, vectors, x, y, curvature="ggn")),
    )


def by_jvp(params, vectors, x, y):
    """Forward over reverse."""
    return torch.func.jvp(gradient_of(x, y), (params,), (vectors,))[1]


def by_vjp(params, vectors, x, y):
    """Reverse over reverse."""
    return torch.func.vjp(gradient_of(x, y), params)[1](vectors)[0]


def by_double_backward(params, vectors, x, y):
    params = [p.detach().requires_grad_() for p in params]
    gradients = torch.autograd.grad(total_loss(forward(params, x), y, "cross_entropy"), params, create_graph=True)
    return torch.autograd.grad(gradients, params, vectors)


def by_hand(params, vectors, x, y):
    """Pearlmutter's passes written out, without the gradient of the weights; r...: tangents."""
    xs = layer_inputs(params, x)
    rxs = [None]
    for i in range(1, len(xs)):
        rxs.append(tangent(params, vectors, xs, rxs, i - 1) * (xs[i] > 0))
    z, rz = outputs(params, xs), tangent(params, vectors, xs, rxs, len(xs) - 1)
    p = z.softmax(-1)
    dz, rdz = output_gradient(z, y, "cross_entropy"), p * (rz - (p * rz).sum(-1, keepdim=True)) / y.shape[-1]
    products = []
    for i in reversed(range(len(xs))):
        product = rdz.mT @ xs[i]
        products = [plus_product(product, dz.mT, rxs[i]) if i else product, rdz.sum(-2), *products]
        if i:
            slope, weight = xs[i] > 0, params[2 * i]
            dz, rdz = dz @ weight * slope, plus_product(rdz @ weight, dz, vectors[2 * i]) * slope
    return products


def tangent(params, vectors, xs, rxs, i):
    """Of a layer's outputs."""
    rz = linear(xs[i], vectors[2 * i], vectors[2 * i + 1])
    return rz if rxs[i] is None else plus_product(rz, rxs[i], params[2 * i].mT)


def plus_product(c, a, b):
    return (torch.addmm if c.ndim == 2 else torch.baddbmm)(c, a, b)


def gradient_of(x, y):
    return torch.func.grad(lambda params: total_loss(forward(params, x), y, "cross_entropy"))


WAYS = {"by hand": by_hand, "jvp(grad)": by_jvp, "vjp(grad)": by_vjp}

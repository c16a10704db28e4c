"""NaN and infinity go through the CUDA kernels of the mlp ops as through plain PyTorch, in values and gradients: a task for each
place where one can lie."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta
from harness.compare import values_and_grads
from harness.mlp_cases import ACTIVATIONS, LOSSES, problem

BACKENDS = ("emulated", "emulated-layers")
PLAIN = {"relu": F.relu, "tanh": torch.tanh, "gelu": F.gelu, "sigmoid": torch.sigmoid, "identity": nn.Identity()}
PLAIN |= {"silu": F.silu, "leaky_relu": F.leaky_relu, "sine": torch.sin}
PLACES = ("weight", "bias", "last weight", "last bias", "input", "ignored input", "target")
VALUES = (torch.nan, torch.inf, -torch.inf)


def poisoned(loss, activation):
    """A task for each place and value, and a sound one; of cross-entropy the second example is ignored."""
    p = problem((2, 5, 3), 4, T=len(PLACES) * len(VALUES) + 1, loss=loss, activation=activation, shared=False)
    if loss == "cross_entropy":
        p.y = p.y.clamp(min=0)
        p.y[:, 1] = -100
    weight, bias, last_weight, last_bias = p.params
    firsts = (weight[:, 0, 0], bias[:, 0], last_weight[:, 0, 0], last_bias[:, 0], p.x[:, 0, 0], p.x[:, 1, 0], p.y[:, 0])
    for i, first in enumerate(firsts):
        for k, value in enumerate(VALUES):
            if first.is_floating_point():
                first[i * len(VALUES) + k] = value
    return p


def outputs(p, params, x):
    return F.linear(PLAIN[p.activation](F.linear(x, *params[:2])), *params[2:])


def loss(p, params, x, y):
    of = F.cross_entropy if p.loss == "cross_entropy" else F.mse_loss
    return of(outputs(p, params, x), y)


def products(p, params, vectors, x, y):
    """The Hessian times vectors, by autograd twice."""
    params = [t.detach().requires_grad_() for t in params]
    grads = torch.autograd.grad(loss(p, params, x, y), params, create_graph=True)
    return torch.autograd.grad(grads, params, vectors, materialize_grads=True)


def by_task(fn):
    """A function of one task, which gives one tensor, over all."""
    return lambda *tensors: torch.stack([fn(*of_task) for of_task in zip(*tensors, strict=True)])


def check(found, expected, *names):
    """Tensors [T, ...]: NaN at the same places, all else alike."""
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        differ = (a.isnan() != b.isnan()).reshape(len(a), -1).any(1).nonzero().flatten().tolist()
        assert not differ, (*names, index, [(PLACES[i // len(VALUES)], VALUES[i % len(VALUES)]) for i in differ])
        torch.testing.assert_close(a, b, equal_nan=True)


def check_with_gradients(ours, plain, tensors):
    expected = values_and_grads(plain, tensors)
    for backend in BACKENDS:
        with fastmeta.backend(backend):
            check(values_and_grads(ours, tensors), expected, backend)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("of", LOSSES)
def test_loss_and_its_gradients(of, activation):
    p = poisoned(of, activation)
    rest = [] if of == "mse" else [p.y]  # classes have no gradients
    check_with_gradients(
        lambda *t: fastmeta.mlp_loss(t[:4], t[4], *t[5:], *rest, **p.options()),
        lambda *t: by_task(lambda *of_task: loss(p, of_task[:4], *of_task[4:]))(*t, *rest),
        [*p.params, p.x] if rest else [*p.params, p.x, p.y],
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_outputs_and_their_gradients(activation):
    p = poisoned("mse", activation)
    check_with_gradients(
        lambda *t: fastmeta.mlp_forward(t[:4], t[4], activation=activation),
        by_task(lambda *of_task: outputs(p, of_task[:4], of_task[4])),
        [*p.params, p.x],
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("of", LOSSES)
def test_products_with_the_hessian(of, activation):
    p = poisoned(of, activation)
    vectors = [torch.randn_like(t) for t in p.params]
    tasks = range(len(p.x))
    expected = [products(p, [w[t] for w in p.params], [v[t] for v in vectors], p.x[t], p.y[t]) for t in tasks]
    for backend in BACKENDS:
        with fastmeta.backend(backend):
            found = fastmeta.mlp_hvp(p.params, vectors, p.x, p.y, **p.options())
        truth = [torch.stack(of_tensor) for of_tensor in zip(*expected, strict=True)]
        if activation == "silu":  # torch's second derivative adds infinite terms of either sign
            found, truth = ([t.where(t.isfinite(), torch.nan) for t in tensors] for tensors in (found, truth))
        check(found, truth, backend)

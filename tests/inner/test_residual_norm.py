"""Residual blocks in the mlp ops, beyond what the random networks of each op's tests have."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.functional import hessian

import fastmeta
from fastmeta import _autograd
from harness import mlp_calls, mlp_cases
from harness.compare import check_against_reference, values_and_grads
from harness.conv_cases import both

D = torch.float64
OPS = {
    "forward": mlp_calls.forward,
    "loss": mlp_calls.loss,
    "grad": mlp_calls.grad,
    "hessian": mlp_calls.hvp,
    "ggn": lambda p: mlp_calls.hvp(p, "ggn"),
    "adapt": lambda p: mlp_calls.adapt(p, "per element", 2),
    "meta_loss": lambda p: mlp_calls.meta_loss(p, "per element and step", 2),
}


def block(widths=(4, 6, 4), n=5, **options):
    return mlp_cases.problem(widths, n, residual_norm=True, **options)


def plain(params, x):
    """One task's outputs."""
    *layers, gamma, beta = params
    z = F.linear(torch.tanh(F.linear(x, *layers[:2])), *layers[2:])
    return x + F.layer_norm(z, z.shape[-1:], gamma, beta)


@both
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("loss", mlp_cases.LOSSES)
def test_equals_autograd_of_layer_norm(backend, shared, loss):
    """A step of each task and the loss after it, and the gradients to all of the parameters and inputs, which take a second derivative."""
    p = block(loss=loss, shared=shared)
    leaves = [t.requires_grad_() for t in (*p.params, p.x)]

    def loss_of(params, t):
        return (F.mse_loss if loss == "mse" else F.cross_entropy)(plain(params, p.x[t]), p.y[t])

    theirs = []
    for t in range(3):
        params = p.of_task(t)
        grads = torch.autograd.grad(loss_of(params, t), params, create_graph=True)
        theirs.append(loss_of([a - 0.3 * g for a, g in zip(params, grads, strict=True)], t))
    ours = fastmeta.mlp_meta_loss(p.params, 0.3, p.x, p.y, p.x, p.y, steps=1, **p.options())
    found = [[ys, *torch.autograd.grad(ys.sin().sum(), leaves)] for ys in (ours, torch.stack(theirs))]
    torch.testing.assert_close(*found)


@both
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_products_are_those_of_the_whole_matrix(backend, curvature):
    p = block(T=1, loss="mse")
    flat, sizes = torch.cat([a.flatten() for a in p.params]), [a.numel() for a in p.params]

    def outputs(theta):
        return plain([v.view(a.shape) for v, a in zip(theta.split(sizes), p.params, strict=True)], p.x[0])

    if curvature == "ggn":
        jacobian = torch.func.jacrev(outputs)(flat).flatten(0, 1)
        matrix = 2 / jacobian.shape[0] * jacobian.T @ jacobian
    else:
        matrix = hessian(lambda theta: F.mse_loss(outputs(theta), p.y[0]), flat)
    vectors = p.vectors()
    ours = fastmeta.mlp_hvp(p.params, vectors, p.x, p.y, curvature=curvature, **p.options())
    theirs = matrix @ torch.cat([v.flatten() for v in vectors])
    torch.testing.assert_close(torch.cat([v.flatten() for v in ours]), theirs)


@pytest.mark.parametrize("call", OPS.values(), ids=OPS)
@pytest.mark.cpu
def test_sizes_and_dtypes(call):
    """One number, no examples, one layer, seven, whole vectors, no beta; float32; float16 is computed in float32."""
    few = [
        block((1, 1), 3),
        block((3, 3), 0),
        block((5,) * 8, 2),
        block((16, 16), 3, bias=False, loss="mse", weights=True),
    ]
    for p in few:
        check_against_reference(*call(p), "ext", cancelling=True)
    check_against_reference(*call(block((16, 33, 16), 9, dtype=torch.float32)), "ext")
    fn, tensors = call(block(dtype=torch.float32, loss="mse"))
    half = [t.half() for t in tensors]
    torch.testing.assert_close(
        [y.float() for y in values_and_grads(fn, half)],
        values_and_grads(fn, [t.float() for t in half]),
        rtol=3e-2,
        atol=1e-2,
    )


@pytest.mark.parametrize("kind", mlp_cases.RATES)
@pytest.mark.cpu
def test_all_rates(kind):
    for first_order, shared in itertools.product((False, True), repeat=2):
        p = block(loss="mse", shared=shared, bias=shared)
        check_against_reference(*mlp_calls.meta_loss(p, kind, 2, first_order), "ext")
    momentum = block(weights=True)
    momentum.optimiser = lambda lr: fastmeta.SGD(lr, 0.7)
    check_against_reference(*mlp_calls.adapt(momentum.with_batches(2), kind, 2), "ext")


@pytest.mark.cpu
def test_native(monkeypatch):
    """The kernels answer; seven layers and a norm at most."""

    def fail(*_):
        raise AssertionError("not native")

    fn, tensors = mlp_calls.meta_loss(block(), "scalar", 2)
    monkeypatch.setattr(_autograd.Op, "reference", fail, raising=False)
    with fastmeta.backend("ext"):
        values_and_grads(fn, tensors)
        with pytest.raises(RuntimeError, match="takes at most 8 layers, got 9"):
            mlp_calls.forward(block((5,) * 9, 2))[0](*mlp_calls.forward(block((5,) * 9, 2))[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"residual_norm": "yes"}, "residual_norm must be True or False, got str"),
        ({"params": lambda p: p.params[:2]}, r"params must be a sequence \[W1, b1, ..., gamma, beta\], got 2 entries"),
        ({"params": lambda p: [*p.params[:-2], None, p.params[-1]]}, r"params\[4\] must be a weight, got None"),
        ({"params": lambda p: [*p.params[:-2], p.params[-2][:-1], None]}, r"params\[4\] must have 4 entries, got shape \[3\]"),
        (
            {"params": lambda p: [*p.params[:2], p.params[2][:-1], p.params[3][:-1], *(x[:-1] for x in p.params[4:])]},
            "a residual block must give as many outputs as it takes, 4, got 3",
        ),
    ],
)  # fmt: skip
@both
def test_errors(backend, change, message):
    p = block()
    given = {"params": p.params, "residual_norm": True} | {k: v(p) if callable(v) else v for k, v in change.items()}
    error = TypeError if given["residual_norm"] is not True else ValueError
    with pytest.raises(error, match=f"mlp_forward: {message}"):
        fastmeta.mlp_forward(given["params"], p.x, residual_norm=given["residual_norm"])

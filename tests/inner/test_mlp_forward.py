import math

import pytest
import torch

import fastmeta
from fastmeta.networks.mlp import ACTIVATIONS as MODULES
from harness import mlp_calls
from harness.compare import check_against_reference, values_and_grads
from harness.mlp_cases import ACTIVATIONS, any_net, native, problem

test_any_net = any_net(mlp_calls.forward)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@native
def test_equals_sequential(backend, activation):
    (kind,) = (made for made, name in MODULES.items() if name == activation)
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), kind(), torch.nn.Linear(5, 2)).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    ours = fastmeta.mlp_forward([net[0].weight, net[0].bias, net[2].weight, net[2].bias], x, activation=activation)
    torch.testing.assert_close(ours, net(x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("scale", [1.0, 30.0])
@native
def test_float32(backend, activation, scale):
    p = problem((7, 33, 4), 17, activation=activation, dtype=torch.float32)
    check_against_reference(mlp_calls.forward(p)[0], [*p.flat, scale * p.x], backend)


@native
def test_sine_of_large_numbers(backend):
    """Near multiples of pi / 2 too, and where float32 leaves no digit of the angle."""
    turns = torch.arange(1, 8000, 7, dtype=torch.float64) * (torch.pi / 2)
    for dtype, most, error in ((torch.float32, 1e8, 3e-7), (torch.float64, 1e12, 2e-15)):
        z = torch.cat([turns, -turns, torch.logspace(-3, math.log10(most), 500, dtype=torch.float64)]).to(dtype)
        x, one = z[:, None].requires_grad_(), z.new_ones(1, 1)
        y = fastmeta.mlp_forward([one, None, one, None], x, activation="sine")
        (slope,) = torch.autograd.grad(y.sum(), x)
        exact = z.detach().double()
        assert (y[:, 0].double() - exact.sin()).abs().max() <= error, dtype
        assert (slope[:, 0].double() - exact.cos()).abs().max() <= error, dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@native
def test_low_precision(backend, dtype):
    p = problem((7, 8, 4), 5, dtype=dtype)
    check_against_reference(*mlp_calls.forward(p), backend)


@native
def test_batch_dimensions(backend):
    p = problem((3, 4, 2), 5, T=6, shared=False)
    flat = fastmeta.mlp_forward(p.params, p.x)
    nested = fastmeta.mlp_forward([t.unflatten(0, (2, 3)) for t in p.params], p.x.unflatten(0, (2, 3)))
    assert torch.equal(nested, flat.unflatten(0, (2, 3)))
    assert torch.equal(fastmeta.mlp_forward([t[0] for t in p.params], p.x[0]), flat[0])
    strided = fastmeta.mlp_forward(p.params, p.x.mT.contiguous().mT)
    assert torch.equal(strided, flat)


@native
def test_errors(backend):
    w, b, x = torch.ones(2, 3), torch.ones(2), torch.ones(4, 3)
    for params, inputs, options, message in (
        ([w], x, {}, r"params must be a sequence \[W1, b1, W2, b2, ...\], got 1 entries"),
        ([None, b], x, {}, r"params\[0\] must be a weight, got None"),
        ([w, b], x[:, :2], {}, r"inputs must have 3 features, as params\[0\], got shape \[4, 2\]"),
        ([w, torch.ones(3)], x, {}, r"params\[1\] must have 2 entries, got shape \[3\]"),
        ([w, b, w, b], x, {}, r"params\[2\] must take 2 features, got shape \[2, 3\]"),
        ([w, b], x, {"activation": "swish"}, "activation must be one of 'relu', .* got 'swish'"),
        (
            [w.expand(5, 2, 3), b],
            x.expand(6, 4, 3),
            {},
            r"params\[0\] must have the batch dimensions of inputs, \[6\], or none",
        ),
    ):
        with pytest.raises(ValueError, match="mlp_forward: " + message):
            fastmeta.mlp_forward(params, inputs, **options)
    words = r"mlp_forward: inputs must have the dtype of params\[0\], torch.float32, got torch.float64"
    with pytest.raises(TypeError, match=words):
        fastmeta.mlp_forward([w, b], x.double())


@native
@pytest.mark.parametrize("shared", [True, False])
def test_weights_that_lie_by_columns(backend, shared):
    """[in, out] seen as [out, in]: the same bits, forward and backward, of layers that take either form."""
    for widths in ((5, 7, 3), (1, 4, 1), (64, 2)):
        p = problem(widths, 4, shared=shared, dtype=torch.float32)
        for op in (mlp_calls.forward(p), mlp_calls.grad(p), mlp_calls.meta_loss(p, "scalar", 2)):
            turned = [t.mT.contiguous().mT if i < len(p.flat) and i % 2 == 0 else t for i, t in enumerate(op[1])]
            assert all(map(torch.equal, values_and_grads(op[0], turned), values_and_grads(*op)))

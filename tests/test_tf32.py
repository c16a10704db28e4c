"""TF32 in the products of the mlp ops layer by layer on CUDA: only where torch.backends.cuda.matmul.allow_tf32 says so."""

import pytest
import torch
from compare import outputs, values_and_grads
from device import DEVICE, tf32_allowed
from mlp_cases import problem
from test_emulated_launchers import calls
from test_emulated_launches import launches

import fastmeta

BACKEND = "emulated-layers" if DEVICE == "cpu" else "ext"
EXAMPLES = 0 if DEVICE == "cpu" else 4000  # of one task, that a GPU goes layer by layer
OPS = ("mlp_forward", "mlp_loss", "mlp_grad", "mlp_hvp", "mlp_adapt", "mlp_meta_loss")  # of calls
either_way = pytest.mark.parametrize("allow_tf32", [False, True], indirect=True)


def rounded(x):
    """To 11 bits, of two the larger magnitude."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def through_identity(x, weight, bias, cotangent):
    """(x I') weight' + bias for x [n, K], and its gradients to x, weight and bias."""
    params = [torch.eye(x.shape[-1]), None, weight, bias]
    with fastmeta.backend(BACKEND):
        out, *grads = values_and_grads(
            lambda x, *last: fastmeta.mlp_forward([*params[:2], *last], x, activation="identity"),
            [x[None], weight, bias],
            [cotangent[None]],
        )
    return out[0], grads[0][0], *grads[1:]


@pytest.mark.parametrize(("n", "K", "C"), [(65, 30, 68), (17, 13, 7)])
@either_way
def test_integers_are_exact(allow_tf32, n, K, C):
    """Distinct ones where there are enough: each product of the right row, column and place in the sum."""
    n = max(n, EXAMPLES)
    largest = 1023 if n < 100 else 63  # sums below 2^24

    def integers(*shape):
        return (torch.randperm(torch.Size(shape).numel()) % (2 * largest + 1) - largest).view(shape).float()

    x, weight, bias, cotangent = integers(n, K), integers(C, K), integers(C), integers(n, C)
    out, dx, dweight, dbias = through_identity(x, weight, bias, cotangent)
    assert torch.equal(out.double(), x.double() @ weight.double().mT + bias)
    assert torch.equal(dweight.double(), cotangent.double().mT @ x.double())
    assert torch.equal(dbias.double(), cotangent.double().sum(0))
    dhidden = (cotangent.double() @ weight.double()).float()
    assert torch.equal(dx, rounded(dhidden) if allow_tf32 else dhidden)  # times I', which takes 11 bits
    assert not torch.equal(dhidden, rounded(dhidden))


@pytest.mark.parametrize(("n", "K", "C"), [(65, 30, 68), (17, 13, 7)])
@either_way
def test_errors_are_those_of_rounded_factors(allow_tf32, n, K, C):
    """Within the roundings of a float32 sum of products of 11-bit numbers, which the products of whole ones are far from."""
    n = max(n, EXAMPLES)
    x, weight, bias, cotangent = torch.randn(n, K), torch.randn(C, K), torch.randn(C), torch.randn(n, C)
    out, _, dweight, dbias = through_identity(x, weight, bias, cotangent)

    def check(found, a, b, plus=0.0):
        a, b, other_a, other_b = (
            t.double() for t in ((rounded(a), rounded(b), a, b) if allow_tf32 else (a, b, rounded(a), rounded(b)))
        )
        bound = (a.shape[1] + 1) * 2**-23 * (a.abs() @ b.abs() + abs(plus))
        assert ((found - (a @ b + plus)).abs() <= bound).all()
        assert ((found - (other_a @ other_b + plus)).abs() > bound).any()

    check(out, x, weight.mT, bias.double())
    check(dweight, cotangent.mT, x)
    total = cotangent.double().sum(0)  # no product: never rounded
    assert ((dbias - total).abs() <= n * 2**-23 * cotangent.double().abs().sum(0)).all()


@either_way
def test_rounding(allow_tf32):
    """Ties away from zero; infinity and NaN stay."""
    odd = torch.tensor([1 + 2**-11, 1 + 2**-11 - 2**-23, 1 + 2**-10 + 2**-11, 1 + 2**-10, 3e38, torch.inf, torch.nan])
    nans = torch.tensor([0x7FFFFFFF, 0x7F800001], dtype=torch.int32).view(torch.float32)
    x = torch.cat([odd, -odd, nans, -nans])[:, None]
    x = x.repeat(1 + EXAMPLES * 64, 1)  # the smaller the network, the more examples
    with fastmeta.backend(BACKEND):
        out = fastmeta.mlp_forward([torch.ones(1, 1), None] * 2, x[None], activation="identity")[0]
    whole = torch.where(x.isfinite(), rounded(x) if allow_tf32 else x, x)
    torch.testing.assert_close(out, whole, rtol=0, atol=0, equal_nan=True)


def ops(p):
    return dict(zip(OPS, calls(p, "per element", False), strict=True))


def on_and_off(fn, tensors, backend, cotangents=None):
    found = []
    for allowed in (True, False):
        with fastmeta.backend(backend), tf32_allowed(allowed):
            found.append(values_and_grads(fn, tensors, cotangents))
    return found


@pytest.mark.parametrize("op", OPS)
def test_every_op(op):
    """Each result, gradients too, is off by up to about 2^-11, a factor's rounding, and without TF32 by far less."""
    p = problem((40, 33, 24), max(17, EXAMPLES), T=2, activation="gelu", dtype=torch.float32)
    fn, tensors = ops(p)[op]
    with fastmeta.backend("reference"):
        in_float64 = [t.double() for t in tensors]
        cotangents = [torch.randn_like(y) for y in outputs(fn(*in_float64))]
        truth = values_and_grads(fn, in_float64, cotangents)
    found = zip(*on_and_off(fn, tensors, BACKEND, cotangents), truth, strict=True)
    ours = len(p.flat) if op == "mlp_hvp" else len(truth)  # its gradients are the reference's
    for index, (on, off, true) in list(enumerate(found))[:ours]:
        if op == "mlp_forward" and index == len(p.flat):  # the gradient to the last bias: no product
            continue
        error, error_off, size = (x.double().square().mean().sqrt() for x in (on - true, off - true, true))
        assert error_off <= 2**-18 * size, index
        assert 4 * error_off < error <= 2**-9 * size, index


@pytest.mark.cpu
@pytest.mark.parametrize(("dtype", "backend"), [(torch.float64, "emulated-layers"), (torch.float32, "emulated")])
def test_neither_float64_nor_the_way_by_task_knows_it(dtype, backend):
    for fn, tensors in ops(problem((5, 9, 3), 6, T=2, dtype=dtype)).values():
        on, off = on_and_off(fn, tensors, backend)
        assert all(map(torch.equal, on, off))


@pytest.mark.cpu
def test_launches_are_the_same():
    p = problem((5, 9, 3), 6, T=2, dtype=torch.float32)
    for fn, tensors in ops(p).values():
        counted = []
        for allowed in (True, False):
            with tf32_allowed(allowed):
                counted.append(launches(lambda fn=fn, t=tensors: values_and_grads(fn, t), "emulated-layers"))
        assert counted[0] == counted[1] > 0

"""TF32 in the products of the mlp ops layer by layer on CUDA: only where torch.backends.cuda.matmul.allow_tf32 says so."""

import pytest
import test_mlp_adapt
import test_mlp_forward
import test_mlp_grad
import test_mlp_hvp
import test_mlp_loss
import test_mlp_meta_loss
import torch
from compare import values_and_grads
from device import DEVICE
from mlp_cases import problem
from test_emulated_launches import launches

import fastmeta

BACKEND = "emulated-layers" if DEVICE == "cpu" else "ext"
EXAMPLES = 0 if DEVICE == "cpu" else 4000  # of one task, that a GPU goes layer by layer
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
            t.double()
            for t in ((rounded(a), rounded(b), a, b) if allow_tf32 else (a, b, rounded(a), rounded(b)))
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
    x = torch.cat([odd, -odd]).repeat(1 + EXAMPLES * 64)[:, None]  # the smaller the network, the more examples
    with fastmeta.backend(BACKEND):
        out = fastmeta.mlp_forward([torch.ones(1, 1), None] * 2, x[None], activation="identity")[0]
    whole = torch.where(x.isfinite(), rounded(x) if allow_tf32 else x, x)
    assert out[whole.isfinite()].equal(whole[whole.isfinite()])
    assert not out[~whole.isfinite()].isfinite().any()


def ops(p):
    return {
        "mlp_forward": (test_mlp_forward.op(p), [*p.flat, p.x]),
        "mlp_loss": (test_mlp_loss.op(p), test_mlp_loss.tensors(p)),
        "mlp_grad": (test_mlp_grad.op(p), test_mlp_loss.tensors(p)),
        "mlp_hvp": (test_mlp_hvp.op(p), test_mlp_hvp.tensors(p)),
        "mlp_adapt": (test_mlp_adapt.op(p, "scalar", 2), test_mlp_adapt.tensors(p, "scalar", 2)),
        "mlp_meta_loss": test_mlp_meta_loss.make(p, "per tensor", 2),
    }


def on_and_off(fn, tensors, backend):
    found = []
    for allowed in (True, False):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        with fastmeta.backend(backend):
            found.append(values_and_grads(fn, tensors))
    return found


@pytest.mark.parametrize("op", ops(problem((2, 3), 1)))
def test_every_op(allow_tf32, op):
    """Each result, gradients too, is off by about 2^-11, a factor's rounding, and without TF32 by far less."""
    p = problem((40, 33, 24), 17 if DEVICE == "cpu" else 600, T=2, activation="gelu", dtype=torch.float32)
    fn, tensors = ops(p)[op]
    with fastmeta.backend("reference"):
        truth = values_and_grads(fn, [t.double() for t in tensors])
    for index, (on, off, true) in enumerate(zip(*on_and_off(fn, tensors, BACKEND), truth, strict=True)):
        error, error_off, size = (x.double().square().mean().sqrt() for x in (on - true, off - true, true))
        print(op, index, (error/size).item(), (error_off/size).item())


@pytest.mark.cpu
@pytest.mark.parametrize(("dtype", "backend"), [(torch.float64, "emulated-layers"), (torch.float32, "emulated")])
def test_neither_float64_nor_the_way_by_task_knows_it(allow_tf32, dtype, backend):
    for fn, tensors in ops(problem((5, 9, 3), 6, T=2, dtype=dtype)).values():
        on, off = on_and_off(fn, tensors, backend)
        assert all(map(torch.equal, on, off))


@pytest.mark.cpu
def test_launches_are_the_same(allow_tf32):
    p = problem((5, 9, 3), 6, T=2, dtype=torch.float32)
    for fn, tensors in ops(p).values():
        counted = []
        for allowed in (True, False):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            counted.append(launches(lambda fn=fn, t=tensors: values_and_grads(fn, t), "emulated-layers"))
        assert counted[0] == counted[1] > 0

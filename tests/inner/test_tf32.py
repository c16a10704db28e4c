"""TF32 in the products of the mlp ops layer by layer on CUDA: only where torch's own products may be in TF32."""

import pytest
import torch

import fastmeta
from emulator.emulation import launches
from harness import forks
from harness.compare import outputs, values_and_grads
from harness.device import DEVICE, tf32_allowed
from harness.mlp_calls import every
from harness.mlp_cases import problem

BACKEND = "emulated-layers" if DEVICE == "cpu" else "ext"
EXAMPLES = 0 if DEVICE == "cpu" else 4000  # of one task, that a GPU goes layer by layer
OPS = ("mlp_forward", "mlp_loss", "mlp_grad", "mlp_hvp", "mlp_adapt", "mlp_meta_loss")  # of mlp_calls.every
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
    return dict(zip(OPS, every(p, "per element", False), strict=True))


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


SETTERS = """
import itertools
import torch
from fastmeta import _precision
from fastmeta.kernels import _products, task_conv2d

b, x = torch.backends, torch.ones(1, 33, 64)
everywhere = {
    "all": lambda on: setattr(b, "fp32_precision", "tf32" if on else "ieee"),
    "all of CUDA": lambda on: setattr(b.cudnn, "fp32_precision", "tf32" if on else "ieee"),
}
own = {
    "matmul": {
        "newer": lambda on: setattr(b.cuda.matmul, "fp32_precision", "tf32" if on else "ieee"),
        "older": lambda on: setattr(b.cuda.matmul, "allow_tf32", on),
        "oldest": lambda on: torch.set_float32_matmul_precision("high" if on else "highest"),
    },
    "conv": {
        "newer of convolutions": lambda on: setattr(b.cudnn.conv, "fp32_precision", "tf32" if on else "ieee"),
        "older of convolutions": lambda on: setattr(b.cudnn, "allow_tf32", on),
    },
}

def reset():
    for value in ("tf32", "none"):  # not what they were, in which nothing was said
        b.fp32_precision = b.cudnn.fp32_precision = value
    b.cuda.matmul.fp32_precision = b.cudnn.conv.fp32_precision = "none"

def taken(op):
    if op == "matmul":
        return "tf32" if _products.rounded(x) else "ieee"
    return task_conv2d._options(x, 64, 64, 64)["PRECISION"]

def check(op, allowed, order):
    assert _precision.allows_tf32(op) == allowed, (op, order)
    assert taken(op) == ("tf32" if allowed else "ieee"), (op, order)

check("matmul", False, "as torch begins")
check("conv", True, "as torch begins")
setters = everywhere | own["matmul"] | own["conv"]
for first, second, third in itertools.permutations(setters, 3):
    for on in itertools.product((False, True), repeat=3):
        reset()
        said = dict(zip((first, second, third), on))
        for name, value in said.items():
            setters[name](value)
        for op, of_op in own.items():
            last = [value for name, value in said.items() if name in of_op][-1:]
            if last and not (op == "conv" and last == [False] and "older of convolutions" in said):  # which inherits
                check(op, last[0], said)
            elif not any(name in of_op for name in said):
                check(op, said.get("all of CUDA", said.get("all", False)), said)
            else:
                check(op, _precision.allows_tf32(op), said)
"""


@pytest.mark.cpu
def test_every_interface_in_every_order():
    """The last word about a product counts, said by whichever interface, else what it inherits; of all, in 8 ways each, three at a
    time. In a process of its own: torch cannot go back to where it began."""
    done = forks.run("-c", SETTERS)
    assert done.returncode == 0, done.stderr


@pytest.mark.cpu
def test_the_newer_interface_sets_the_cuda_kernels():
    """The older one cannot be read then."""
    x, matmul = torch.full((1, 1, 1), 1 + 2**-12), torch.backends.cuda.matmul
    found = []
    with fastmeta.backend("emulated-layers"):
        for matmul.fp32_precision in ("tf32", "ieee"):
            found.append(fastmeta.mlp_forward([torch.ones(1, 1), None] * 2, x, activation="identity").item())
    assert found == [1, x.item()]

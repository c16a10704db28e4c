"""One number of one argument becomes NaN or infinite: the native CPU kernels' values and gradients are finite where the reference's
are, which is plain PyTorch, and NaN where a NaN makes them so."""

import functools

import pytest
import torch

import fastmeta
from fastmeta import _C, ConvBlock
from harness import conv_cases, mlp_calls
from harness.cases import randn
from harness.compare import outputs, values_and_grads
from harness.distance_cases import log_softmax, loss, matching
from harness.mlp_cases import ACTIVATIONS, LOSSES, problem

D, NAN = torch.float64, torch.nan
LABELS = torch.tensor([[-100, 0, 2, 1], [2, -100, 0, 1]])  # the first is ignored: so is the first place that is spoiled
every_isa = pytest.mark.parametrize("isa", _C.isas())
SIZES = {"few": (3, 4, 6), "many": (17, 12, 6), "products": (17, 64, 64)}  # Q, N, D
few_and_many = pytest.mark.parametrize("sizes", [SIZES["few"], SIZES["many"]], ids=["few", "many"])
metrics = pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])


@pytest.fixture(autouse=True)
def _same_instruction_set():
    before = _C.isa()
    yield
    _C.set_isa(before)


def check(fn, tensors, values=(NAN, torch.inf, -torch.inf), *, fixed=(), dtypes=(torch.float32, D), truth=None):
    """`fixed`: the places of tensors that are not spoiled. `truth`: of values alone, what stands for `fn` there."""

    def results(backend, spoiled):
        with fastmeta.backend(backend):
            if truth is not None:
                return outputs((truth if backend == "reference" else fn)(*spoiled))
            return values_and_grads(fn, spoiled, [1 + torch.arange(n, dtype=D).view(s) % 2 for n, s in shapes])

    shapes = [(y.numel(), y.shape) for y in outputs(fn(*tensors))]
    for which, tensor in enumerate(tensors):
        for place in {0, tensor.numel() * 2 // 3} if which not in fixed else ():
            for value in values:
                spoiled = [t.clone() for t in tensors]
                spoiled[which].view(-1)[place] = value
                expected = results("reference", spoiled)
                for isa, dtype in ((isa, dtype) for isa in _C.isas() for dtype in dtypes):
                    _C.set_isa(isa)
                    for i, (ours, plain) in enumerate(
                        zip(results("ext", [t.to(dtype) for t in spoiled]), expected, strict=True)
                    ):
                        where = f"{value} at {place} of argument {which}, result {i}, {isa}, {dtype}"
                        assert torch.equal(ours.isfinite(), plain.isfinite()), where
                        assert value == value or torch.equal(ours.isnan(), plain.isnan()), where


CALLS = {
    "forward": mlp_calls.forward,
    "loss": mlp_calls.loss,
    "grad": mlp_calls.grad,
    "hvp": mlp_calls.hvp,
    "adapt": lambda p: mlp_calls.adapt(p, "per element", 2),
    "meta_loss": lambda p: mlp_calls.meta_loss(p, "per element", 2),
}


@pytest.mark.parametrize(  # each two of these together
    ("op", "activation", "of"),
    [(op, a, LOSSES[(i + j) % 2]) for i, op in enumerate(CALLS) for j, a in enumerate(ACTIVATIONS)],
)
def test_mlp_ops(op, activation, of):
    p = problem((5, 6, 3), 4, T=2, loss=of, activation=activation, shared=False, weights=activation == "tanh")
    if of == "cross_entropy":
        p.y = LABELS
    rates = range(len(p.flat), 2 * len(p.flat)) if op in ("adapt", "meta_loss") else ()
    finite_derivatives = activation != "gelu"  # torch's at the infinities depend on the width of its vectors
    values = (NAN, torch.inf, -torch.inf) if finite_derivatives else (NAN,)
    fn, tensors = CALLS[op](p)
    weights = [i for i, t in enumerate(tensors) if t.shape == (2, 4)]
    check(fn, tensors, values, fixed=[*rates, *weights], truth=by_autograd(p) if op == "hvp" else None)


def by_autograd(p):
    """mlp_hvp, whose gradients are not the kernel's, and whose reference has finite second derivatives at the infinities."""
    n = len(p.flat)

    def products(*t):
        y = t[2 * n + 1] if p.loss == "mse" else p.y
        options = p.options() | {"weights": t[-1] if p.weights is not None else None}
        loss = lambda params: fastmeta.mlp_loss(params, t[2 * n], y, **options).sum()  # noqa: E731
        return fastmeta.hvp(loss, list(t[:n]), list(t[n : 2 * n]))

    return products


def test_elementwise_ops():
    check(lambda s: fastmeta.prototypes(s, LABELS.clamp(min=0), 3), [randn(2, 4, 5)])
    check(fastmeta.sgd_step, [randn(2, 9), randn(2, 9), randn(9)], fixed=[2])
    x = [randn(2, 9) for _ in range(3)]
    for decay in (0.0, 0.1):
        momentum = functools.partial(fastmeta.momentum_step, momentum=0.9, weight_decay=decay)
        adam = functools.partial(fastmeta.adam_step, step=2, weight_decay=decay)
        check(momentum, [*x, randn(9)], fixed=[3])
        check(adam, [*x, 1 + x[0].square(), randn(9)], fixed=[4])


def of_distances(metric, queries, ways, _, temperature):
    """Each op of [2, queries, D] and [2, ways, D]."""
    targets, labels = (
        torch.arange(queries).remainder(ways).repeat(2, 1),
        torch.arange(ways).remainder(3).expand(2, ways),
    )
    targets[0, 0] = -100
    return {
        "proto_log_softmax": log_softmax(metric, temperature),
        "proto_loss": loss(targets, metric=metric, temperature=temperature),
        "matching_log_probs": matching(labels, 3, metric, temperature),
    }


def pairs(queries, ways, features):
    """A zero vector on both sides, where "cosine" has gradient 0."""
    query, prototypes = randn(2, queries, features), randn(2, ways, features)
    query[0, -1] = prototypes[0, -1] = 0
    return [query, prototypes]


DISTANCES = pytest.mark.parametrize("op", ["proto_log_softmax", "proto_loss", "matching_log_probs"])


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@metrics
@DISTANCES
def test_distance_ops(op, metric, sizes):
    check(of_distances(metric, *sizes, 0.7)[op], pairs(*sizes))


CONV_NETS = {
    "batch norm": {"blocks": (ConvBlock(),) * 2},
    "batch norm without gamma": {"blocks": (ConvBlock(),), "affine": False},
    "group norm": {"blocks": (ConvBlock(norm=4),)},
    "no norm": {"blocks": (ConvBlock(norm=None),) * 2},
    "no norm, no relu": {"blocks": (ConvBlock(norm=None, relu=False),)},
    "no norm, no pool": {"blocks": (ConvBlock(norm=None, pool=1),), "size": 5},
    "padded channels": {"blocks": (ConvBlock(norm=None),) * 2, "channels": 3},
}


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("kind", CONV_NETS)
def test_convolutional_networks(kind, first_order):
    """A bias before batch norm, windows, pixels that no window has. No instruction set pads 8 channels of float64; with padding,
    infinite pixels give more NaN (conv_layout.h)."""
    p = conv_cases.problem(**{"n": 4, "channels": 8, "inputs": 1, "size": 9, "T": 2} | CONV_NETS[kind])
    p.y = LABELS
    values = (NAN,) if kind == "padded channels" else (NAN, torch.inf, -torch.inf)
    fn, tensors = mlp_calls.meta_loss(p, "scalar", 1, first_order)
    check(fn, tensors, values, fixed=[len(p.flat)], dtypes=(D,))


@every_isa
@pytest.mark.parametrize("wrong", [5, -1, 2**40, -(2**62)])
@pytest.mark.parametrize("which", ["support", "query"])
def test_the_convolutional_kernel_reads_no_place_that_a_wrong_label_names(which, wrong, isa):
    """The op refuses such labels; the kernel, past it: NaN in the loss and all gradients of the task, no other's."""
    _C.set_isa(isa)
    p = conv_cases.problem((ConvBlock(norm=None),), 4, size=6, T=2, shared=False)
    labels = [p.y.clamp(min=0), p.y.clamp(min=0)]
    labels[which == "query"][1, 2] = wrong
    needs = (*(t is not None for t in p.params), True, False, False, False, False)
    data = p.x, labels[0], p.like_x(4), labels[1]
    blocks = tuple(map(tuple, p.blocks))
    call = (p.params, [torch.tensor(0.1, dtype=D)], *data, 2, blocks, "cross_entropy", False, False, None, needs)
    (losses,), (of_rates, *grads) = _C.conv_meta_loss_fwd(*call)  # what is summed over the tasks comes first
    for result in (losses, of_rates, *grads):
        assert result[0].isfinite().all() and result[1].isnan().any()
    assert losses[1].isnan() and all(g[1].isnan().all() for g in (*grads[-2:], of_rates))


EXTREMES = {
    "one far": lambda q, c: (q, c * torch.tensor([1e20] + [1.0] * (c.shape[1] - 1)).unsqueeze(1)),
    "an offset": lambda q, c: (q * 1e17 + 1e20, c * 1e17 + 1e20),
    "largest": lambda q, c: (torch.full_like(q, 1.6e38), torch.full_like(c, 1.6e38)),
    "small": lambda q, c: (q * 1e-30, c * 1e-30),
    "denormal": lambda q, c: (q * 1e-44, c * 1e-44),
    "zero": lambda q, c: (q * 0, c * 0),
    "coincident": lambda q, c: (c[:, torch.arange(q.shape[1]) % c.shape[1]], c),
}


@every_isa
@few_and_many
@metrics
@DISTANCES
def test_distances_at_the_ends_of_float32(op, metric, sizes, isa):
    """As the reference in float32, whose squares overflow and vanish in the same places; its gradients overflow at small
    temperatures."""
    _C.set_isa(isa)
    drawn = [t.float() for t in pairs(*sizes)]
    for kind, change in EXTREMES.items():
        for temperature in (0.7, 1e-40, 1e38) if kind == "coincident" and metric != "cosine" else (0.7,):
            found = []
            for backend in ("ext", "reference"):
                with fastmeta.backend(backend):
                    call = lambda q, c, t: of_distances(metric, *sizes, t)[op](q, c)  # noqa: E731
                    found.append(values_and_grads(call, [*change(*drawn), torch.tensor(temperature)]))
            for i, (x, y) in enumerate(list(zip(*found, strict=True))[: 1 if temperature < 1e-30 else None]):
                where = f"{kind}, temperature {temperature}, result {i}: {x} for {y}"
                x, y = x.clamp(min=-1e37), y.clamp(min=-1e37)  # which of the last numbers becomes -inf is open
                torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4, equal_nan=True, msg=where)

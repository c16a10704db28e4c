"""A batch for each step, and an optimiser, in the ops of inner loops, beyond what each op's table has."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from plain import adam, sgd

import fastmeta
from fastmeta import _ext
from fastmeta.loops.optimisers import AdamEpsHat
from harness import conv_cases, mlp_calls, mlp_cases
from harness.compare import check_against_reference, check_threads, outputs, values_and_grads
from harness.plain_unroll import D, plain_unroll


def adam_eps_hat(p, g, state, k, lr, betas, eps):
    """eps beside the root of v itself."""
    m, v = (b * x + (1 - b) * y for b, x, y in zip(betas, state, (g, g**2), strict=True))
    return p - lr * (1 - betas[1] ** k) ** 0.5 / (1 - betas[0] ** k) * m / (v.sqrt() + eps), [m, v]


OPTIMISERS = {
    "sgd": (lambda lr: fastmeta.SGD(lr), sgd, {}),
    "momentum": (lambda lr: fastmeta.SGD(lr, 0.7), sgd, {"momentum": 0.7}),
    "decay": (lambda lr: fastmeta.SGD(lr, weight_decay=0.2), sgd, {"weight_decay": 0.2}),
    "nesterov": (lambda lr: fastmeta.SGD(lr, 0.7, 0.2, True), sgd, {"momentum": 0.7, "weight_decay": 0.2, "nesterov": True}),
    "adam": (lambda lr: fastmeta.Adam(lr, (0.7, 0.8), 0.1), adam, {"betas": (0.7, 0.8), "eps": 0.1}),
    "adam with decay": (
        lambda lr: fastmeta.Adam(lr, (0.7, 0.8), 0.1, 0.2), adam, {"betas": (0.7, 0.8), "eps": 0.1, "weight_decay": 0.2},
    ),
    "adam with eps hat": (lambda lr: AdamEpsHat(lr, (0.7, 0.8), 0.1), adam_eps_hat, {"betas": (0.7, 0.8), "eps": 0.1}),
}  # fmt: skip
optimisers = pytest.mark.parametrize("name", OPTIMISERS)
both = conv_cases.both
K = 3


def problem(name=None, batches=True, widths=(3, 5, 4), n=7, **options):
    p = mlp_cases.problem(widths, n, **options)
    p.optimiser = None if name is None else OPTIMISERS[name][0]
    return p.with_batches(K) if batches else p


def conv(name=None, **options):
    p = conv_cases.problem((fastmeta.ConvBlock(eps=0.1),), 5, size=4, ways=3, **options)
    p.optimiser = None if name is None else OPTIMISERS[name][0]
    return p.with_batches(K)


@both
@optimisers
@pytest.mark.parametrize("batches", [True, False])
def test_equals_the_plain_loop(backend, name, batches):
    """torch.optim's formulas on autograd's graph, task by task, and their gradient."""
    p = problem(name, batches, loss="mse", weights=True)
    (make, formula, options), lr = OPTIMISERS[name], torch.tensor(0.2, dtype=D)
    leaves = [t.requires_grad_() for t in (*p.params, lr, p.x, p.y, p.weights)]

    def loss(params, x, y, weights):
        w1, b1, w2, b2 = params.values()
        errors = F.linear(F.linear(x, w1, b1).tanh(), w2, b2) - y
        return (weights * errors.square().mean(-1)).mean()

    tasks = []
    for t in range(p.tasks):
        support = [
            (p.x[k, t], p.y[k, t], p.weights[k, t]) if batches else (p.x[t], p.y[t], p.weights[t]) for k in range(K)
        ]
        points, _ = plain_unroll(loss, dict(enumerate(p.params)), support, formula, lr=lr, **options)
        tasks.append(list(points[-1].values()))
    plain = [torch.stack(of_tasks) for of_tasks in zip(*tasks, strict=True)]
    how = {"steps": K, "weights": p.weights, "batch_per_step": batches, "optimiser": make(lr)}
    ours = fastmeta.mlp_adapt(p.params, None, p.x, p.y, **p.options(), **how)
    found = [[*ys, *torch.autograd.grad(sum(y.sin().sum() for y in ys), leaves)] for ys in (ours, plain)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", [None, "momentum", "nesterov", "adam with decay"])
@pytest.mark.parametrize("kind", mlp_cases.RATES)
@pytest.mark.cpu
def test_all_rates(name, kind):
    for first_order, shared, loss in ((False, True, "mse"), (True, False, "cross_entropy")):
        p = problem(name, shared, loss=loss, shared=shared, weights=not shared)
        check_against_reference(*mlp_calls.adapt(p, kind, K, first_order), "ext")
        check_against_reference(*mlp_calls.meta_loss(p, kind, K, first_order), "ext")


@pytest.mark.parametrize("name", [None, "nesterov", "adam"])
@pytest.mark.parametrize("kind", ["per element and step", "per tensor"])
@pytest.mark.cpu
def test_conv(name, kind):
    for call, loss in ((mlp_calls.adapt, "mse"), (mlp_calls.meta_loss, "cross_entropy")):
        check_against_reference(*call(conv(name, loss=loss, weights=True), kind, K), "ext", cancelling=True)


@pytest.mark.parametrize("name", [None, "adam"])
@pytest.mark.cpu
def test_sizes(name):
    """Steps that are computed again on the way back; a head whose plain loop goes by its examples' products; rows that are whole vectors;
    no examples and no steps; float32."""
    large = problem(name, True, (8, 700, 3), 300, T=1)
    check_against_reference(*mlp_calls.meta_loss(large, "scalar", K), "ext")
    for p in (problem(name, True, (150, 3), 5, shared=False), problem(name, True, (16, 8), 3), problem(name, n=0)):
        check_against_reference(*mlp_calls.meta_loss(p, "per tensor", K), "ext")
    low = problem(name, True, (7, 33, 4), 17, dtype=torch.float32)
    check_against_reference(*mlp_calls.adapt(low, "per element", K), "ext")
    none = problem(name)
    none.x, none.y = none.x[:0], none.y[:0]
    for call in (mlp_calls.adapt, mlp_calls.meta_loss):
        check_against_reference(*call(none, "scalar", 0), "ext")


@pytest.mark.cpu
def test_threads():
    p = problem("adam", True, (20, 40, 5), 30, T=7, weights=True)
    fn, tensors = mlp_calls.meta_loss(p, "per element", K)
    check_threads(lambda: values_and_grads(fn, tensors))


@both
def test_batch_dimensions(backend):
    """Two of tasks behind the steps; support and targets for all tasks; the optimiser of plain steps is none."""
    p = problem(loss="cross_entropy", T=6)
    options = p.options() | {"steps": K, "batch_per_step": True}
    flat = fastmeta.mlp_adapt(p.params, 0.1, p.x, p.y, **options)
    x, y = (t.unflatten(1, (2, 3)) for t in (p.x, p.y))
    folded = fastmeta.mlp_adapt(p.params, None, x, y, **options, optimiser=fastmeta.SGD(0.1))
    assert all(torch.equal(a, b.flatten(0, 1)) for a, b in zip(flat, folded, strict=True))
    one = fastmeta.mlp_adapt(p.params, 0.1, p.x[:, 0], p.y[:, 0], **options)
    torch.testing.assert_close(one, [a[0] for a in flat])
    of_all = fastmeta.mlp_adapt(p.params, 0.1, p.x, p.y[:, 0], **options)
    torch.testing.assert_close([a[0] for a in of_all], one)


@pytest.mark.cpu
def test_value_and_grad():
    p = problem("adam", loss="mse")
    for places in ((0,), (0, 2, 3)):
        fn, tensors = mlp_calls.meta_loss(p, "scalar", K)
        query_x, query_y = tensors[-2:]
        run = fastmeta.value_and_grad(fastmeta.mlp_meta_loss, places)
        of_steps = p.steps(0.1, K)[1]
        value, grads = run(p.params, None, p.x, p.y, query_x, query_y, **p.options(), **of_steps)
        expected = values_and_grads(fn, tensors)
        of_support = expected[1 + len(p.params) + 1 :][:2] if len(places) > 1 else []
        torch.testing.assert_close([value, *outputs(grads)], [*expected[: 1 + len(p.params)], *of_support])


OF_X = "inputs must have a batch for each of 3 steps in front, got shape"
WRONG = [
    ({"lr": 0.1, "optimiser": fastmeta.SGD(0.1)}, ValueError, "lr must be None beside optimiser, which has its own, got 0.1"),
    ({"optimiser": "adam"}, TypeError, "optimiser must be None, a fastmeta.SGD or a fastmeta.Adam, got 'adam'"),
    ({"optimiser": fastmeta.SGD(0.1, torch.tensor(0.9))}, TypeError,
     "optimiser must have a number for momentum, which fastmeta.unroll learns, got Tensor"),
    ({"optimiser": fastmeta.SGD(torch.ones(2, dtype=D))}, ValueError, r"lr must have shape \[\] or \[3\], got \[2\]"),
    ({"lr": 0.1, "batch_per_step": "yes"}, TypeError, "batch_per_step must be True or False, got str"),
    ({"lr": 0.1, "steps": 2}, ValueError, OF_X.replace("3", "2") + r" \[3, 3, 7, 3\]"),
    ({"lr": 0.1, "inputs": torch.zeros(7, 3, dtype=D)}, ValueError, OF_X + r" \[7, 3\]"),
    ({"lr": 0.1, "inputs": torch.zeros(3, 3, 7, 2, dtype=D)}, ValueError, "inputs of a step must have 3 features"),
    ({"lr": 0.1, "targets": torch.zeros(3, 2, 7, dtype=torch.int64)}, ValueError,
     r"targets must have shape \[3, 3, 7\], got \[3, 2, 7\]"),
    ({"lr": 0.1, "weights": torch.zeros(2, 7, dtype=D)}, ValueError, r"weights must have shape \[3, 7\], got \[2, 7\]"),
    ({}, TypeError, "lr must be a number or a tensor, got NoneType"),
]  # fmt: skip


@both
def test_errors(backend):
    p = problem()
    right = {"lr": None, "inputs": p.x, "targets": p.y, "steps": K, "batch_per_step": True}
    for wrong, error, message in WRONG:
        with pytest.raises(error, match=f"mlp_adapt: {message}"):
            fastmeta.mlp_adapt(p.params, **p.options(), **right | wrong)


@pytest.mark.cpu
def test_on_cuda_the_reference_runs():
    """The limit tells why, and the CUDA kernels refuse what comes to them all the same."""
    on_cuda, plain = [SimpleNamespace(is_cuda=True)], (True, None)
    for limit in (_ext.mlp_adapt_limit, _ext.mlp_meta_loss_limit):
        assert limit(on_cuda, 0.1, plain) == "takes no batch for each step and no optimiser on CUDA"
        assert limit(on_cuda, 0.1, None) is None
    fn, tensors = mlp_calls.adapt(problem(), "scalar", K)
    with fastmeta.backend("emulated"), pytest.raises(ValueError, match="mlp_adapt: .* must run on a CPU"):
        fn(*tensors)

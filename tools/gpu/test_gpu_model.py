"""The predictions of bench/model.py and counts.py: counts against torch's and against tensors, times by hand."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from fastmeta import reference
from gpu import model
from harness import forks
from harness.places import WITH_TOOLS
from measure import counts

NETS = [((640, 5), 2, 25), ((1, 40, 40, 1), 3, 10), ((7, 33, 20, 4), 2, 17)]  # widths, T, n


def counted(fn):
    """Flops of the matrix products in fn(), by torch."""
    with FlopCounterMode(display=False) as counter:
        fn()
    return counter.get_total_flops()


def flops(kernels):
    return sum(getattr(kernel, "block", kernel).flops for kernel in kernels)


def net(widths, T, n):
    params = []
    for inputs, outputs in itertools.pairwise(widths):
        params += [torch.randn(outputs, inputs).requires_grad_(), torch.randn(outputs).requires_grad_()]
    return params, torch.randn(T, n, widths[0]), torch.randint(0, widths[-1], (T, n))


@pytest.mark.parametrize(("widths", "T", "n"), NETS)
def test_flops_of_losses_and_products_are_torchs(widths, T, n):
    """Of a Hessian-vector product the reference multiplies the inputs' tangents too, which are 0: those two products less."""
    params, x, y = net(widths, T, n)
    vectors, first = [torch.randn(T, *p.shape) for p in params], 2 * T * n * widths[0] * widths[1]
    plain = [p.detach() for p in params]
    options = ("relu", "cross_entropy")
    grad = counted(lambda: reference.mlp_grad(plain, x, y, *options))
    loss = counted(lambda: torch.autograd.grad(reference.mlp_loss(params, x, y, *options).sum(), params))
    forward = counted(lambda: reference.mlp_forward(plain, x, "relu"))
    products = [counted(lambda c=c: reference.mlp_hvp(plain, vectors, x, y, *options, c)) for c in ("hessian", "ggn")]
    assert flops(counts.mlp_grad(widths, T, n)) == flops(counts.mlp_loss(widths, T, n)) == grad == loss
    assert counts.mlp_forward(widths, T, n)[0].block.flops == forward
    assert flops(counts.mlp_hvp(widths, T, n)) == products[0] - 2 * first
    assert flops(counts.mlp_hvp(widths, T, n, "ggn")) == products[1] - first


@pytest.mark.parametrize("second", [False, True])
def test_flops_of_convolutions_are_torchs(second):
    """Of n images of C channels, 7 x 7 pixels, to E channels, for each of T tasks; and of the gradients' gradients."""
    T, n, C, E = 2, 3, 4, 5
    leaves = [torch.randn(T, n, C, 7, 7).requires_grad_(), torch.randn(T, E, C, 3, 3).requires_grad_()]

    def gradients():
        y = reference.task_conv2d(*leaves, None, 1, 1)
        grads = torch.autograd.grad(y.square().sum(), leaves, create_graph=second)
        if second:
            torch.autograd.grad(grads, leaves, [torch.ones_like(g) for g in grads])

    assert flops(counts.task_conv2d(T, n, C, E, 49, 3, second)) == counted(gradients)


@pytest.mark.parametrize(("widths", "T", "n"), NETS)
@pytest.mark.parametrize("steps", [1, 5])
def test_flops_of_a_meta_iteration_are_near_double_backwards(widths, T, n, steps):
    """Autograd keeps the activations that the kernel computes again: the kernel's are 0.9 to 1.4 times as many."""
    params, x, y = net(widths, T, n)

    def meta_gradient():
        theta = [p.expand(T, *p.shape) for p in params]
        for _ in range(steps):
            grads = torch.autograd.grad(loss(theta), theta, create_graph=True)
            theta = [t - 0.1 * g for t, g in zip(theta, grads, strict=True)]
        return torch.autograd.grad(loss(theta), params)

    def loss(theta):
        z = x
        for i in range(0, len(theta), 2):
            z = torch.baddbmm(theta[i + 1].unsqueeze(1), z.relu() if i else z, theta[i].mT)
        return F.cross_entropy(z.flatten(0, 1), y.flatten()) * T

    ours, of_two_ops = (flops(of(widths, T, n, n, steps)) for of in (counts.mlp_meta_loss, counts.mlp_adapt))
    ratio = ours / counted(meta_gradient)
    assert 0.9 <= ratio <= 1.4, ratio
    assert of_two_ops == ours


@pytest.mark.parametrize("shape", [(1, 75, 5, 64), (2, 40, 60, 32)])
def test_flops_of_distances(shape):
    """By differences two instructions where a product has one; by products the same in forward."""
    T, Q, N, D = shape
    forward = flops(counts.distances(*shape, gradients=False))
    torchs = counted(lambda: torch.randn(T, Q, D) @ torch.randn(T, D, N))
    assert forward == torchs * (2 if N <= 32 else 1)
    few = N <= 32
    assert flops(counts.distances(*shape)) == torchs * (2 + 8 if few else 1 + 4)
    assert flops(counts.distances(*shape, kept=True)) == torchs * (2 + 4 if few else 1 + 4)
    assert flops(counts.distances(T, Q, 60, 512)) == 2 * T * Q * 60 * 512 * (
        1 + 2 * (1 + 8)
    )  # eight blocks of 64 features


def test_bytes_are_those_of_the_tensors():
    """Everything that a call takes, gives and keeps, once."""
    T, P = 3, 50
    theta, grads, rate = torch.zeros(P), torch.zeros(T, P), torch.zeros(())
    new, cotangent = torch.zeros(T, P), torch.zeros(T, P)
    forward, backward = counts.sgd_step(T, P, 1)
    assert forward.bytes == sum(t.nbytes for t in (theta, grads, rate, new))
    assert backward.bytes == sum(t.nbytes for t in (cotangent, grads, grads, theta, rate, rate))
    support, labels, means = torch.zeros(T, 25, 8), torch.zeros(T, 25, dtype=torch.int64), torch.zeros(T, 5, 8)
    assert [x.bytes for x in counts.prototypes(T, 25, 5, 8)] == [sum(t.nbytes for t in (support, labels, means))] * 2
    query, nearest = torch.zeros(T, 75, 8), torch.zeros(T, 75)
    kept = 2 * nearest.nbytes  # and the log-sum-exp
    assert [x.bytes for x in counts.distances(T, 75, 5, 8)] == [
        query.nbytes + means.nbytes + kept,
        2 * (query.nbytes + means.nbytes) + kept,
    ]
    params, x, _ = net((7, 4), T, 9)
    (product,) = counts.mlp_hvp((7, 4), T, 9)
    own = [torch.zeros(T, *p.shape) for p in params]
    assert product.block.bytes == 3 * sum(p.nbytes for p in own) + x.nbytes + 4 * T * 9 * 4


def test_launches_are_those_that_a_call_makes():
    """Of the sinusoid: our kernel, the rate, the gradients over the tasks, the mean of the losses and its gradient."""
    kernels = counts.mlp_meta_loss((1, 40, 40, 1), 25, 10, 10, 1)
    assert [launch.count for launch in model.launches_on(model.CARDS["H100"], kernels)] == [1, 1, 1, 1, 1]
    kernels = counts.mlp_meta_loss(
        (784, 64, 64, 10), 8, 100, 100, 2
    )  # too large: 7 a step and for the query, 13 a step back
    assert model.launches_on(model.CARDS["H100"], kernels)[0].count == 2 * 7 + 7 + 2 * 13


def test_seconds_by_hand():
    card = model.Card(4, 1e9, bandwidth=1e12, peak=1e12, tf32=1e13, shared=1000)
    launch = model.Launch("", bytes=5e6, flops=2e6, count=3)
    assert model.seconds(card, [launch], "eager") == pytest.approx(5e-6 + 9e-6)  # HBM
    assert model.seconds(card, [launch._replace(flops=8e6)], "graph") == pytest.approx(8e-6 + 4.5e-6)
    assert model.seconds(card, [launch._replace(flops=8e6, tensor_cores=True)], "graph") == pytest.approx(5e-6 + 4.5e-6)
    # 9 tasks on 4 multiprocessors: three on one, two at a time; 512 bytes of shared memory a cycle in all; 30 phases
    block = model.Launch("", bytes=0, flops=9e6, tasks=9, phases=30, resident=2)
    expected = 3 / 9 * 4 * 9e6 / 512e9 + 2 * 30 * 200e-9
    assert model.seconds(card, [block], "graph") == pytest.approx(expected + 1.5e-6)
    both = model.Tasks(block, 1000, launch)
    assert model.launches_on(card, [both]) == [block]
    assert model.launches_on(card, [both._replace(working_set=1001)]) == [launch]


def test_the_table_in_the_docs_is_what_the_model_says():
    code = "import model_table as t; text = t.DOCS.read_text(); assert t.BEGIN + t.table() + t.END in text"
    env = WITH_TOOLS
    done = forks.run("-c", code, env=env)
    assert done.returncode == 0, f"make gpu-model writes tools/gpu.md anew\n{done.stderr}"

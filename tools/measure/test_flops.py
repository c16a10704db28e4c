"""The operations that floors are counted by, against torch's own count."""

import itertools

import pytest
import torch
from bench_learners import Images, net
from torch.utils.flop_counter import FlopCounterMode

from fastmeta import reference
from measure import flops
from pages import costs


def counted(fn):
    with FlopCounterMode(display=False) as counter:
        fn()
    return counter.get_total_flops()


def test_a_convolutional_network():
    """Forward, and backward to all parameters but not to the inputs."""
    model, x, expected = (
        net(Images(width=8, channels=3, side=32)),
        torch.randn(5, 3, 32, 32),
        flops.conv4(8, 3, 32, 5, 5),
    )
    assert counted(lambda: model(x)) == expected[0]
    assert counted(lambda: model(x).sum().backward()) == flops.gradients(*expected)


@pytest.mark.parametrize("widths", [(640, 5), (1, 40, 40, 1), (7, 33, 20, 4)])
def test_an_mlp_and_its_hessian_vector_product(widths):
    """Of a Hessian-vector product the reference multiplies the inputs' tangents too, which are 0: those two products less."""
    T, n, options = 2, 25, ("relu", "cross_entropy")
    params = [torch.randn(size) for i, o in itertools.pairwise(widths) for size in ((o, i), (o,))]
    vectors, first = [torch.randn(T, *p.shape) for p in params], 2 * T * n * widths[0] * widths[1]
    x, y = torch.randn(T, n, widths[0]), torch.randint(0, widths[-1], (T, n))
    of_grad = counted(lambda: reference.mlp_grad(params, x, y, *options))
    assert of_grad == T * flops.gradients(*flops.products(widths, n))
    of_product = counted(lambda: reference.mlp_hvp(params, vectors, x, y, *options, "hessian"))
    assert of_product == T * flops.hvp(widths, n) + 2 * first


def total(launches):
    return sum(launch.flops for launch in launches)


def test_the_costs_on_the_pages_of_ops():
    """Convolutions' flops are torch's, which counts those of a weight gradient by groups too often; by differences a distance takes two
    instructions where a product has one."""
    leaves = [torch.randn(1, 3, 4, 7, 7).requires_grad_(), torch.randn(1, 5, 4, 3, 3).requires_grad_()]
    of_one = counted(lambda: reference.task_conv2d(*leaves, None, 1, 1).sum().backward())
    assert total(costs.task_conv2d(2, 3, 4, 5, 49, 3)) == 2 * of_one
    for shape, times in (((1, 75, 5, 64), 2 + 8), ((2, 40, 60, 32), 1 + 4)):
        T, Q, N, D = shape
        assert total(costs.distances(*shape)) == times * counted(lambda: torch.randn(T, Q, D) @ torch.randn(T, D, N))  # noqa: B023
    support, labels, means = torch.zeros(3, 25, 8), torch.zeros(3, 25, dtype=torch.int64), torch.zeros(3, 5, 8)
    assert [x.bytes for x in costs.prototypes(3, 25, 5, 8)] == [sum(t.nbytes for t in (support, labels, means))] * 2

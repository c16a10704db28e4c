"""The mlp ops give the same bits on any number of threads."""

import pytest
import torch

import fastmeta
from harness.compare import check_threads, values_and_grads
from harness.mlp_cases import problem

pytestmark = pytest.mark.cpu

SIZES = [((20, 40, 5), 30, 7), ((130, 64, 64, 10), 100, 3), ((640, 5), 25, 9), ((1, 40, 40, 1), 10, 25)]  # widths, n, T


def adapt(params, p):
    return fastmeta.mlp_adapt(params, 0.01, p.x, p.y, steps=3, **p.options())


def meta_loss(params, p):
    return fastmeta.mlp_meta_loss(params, 0.01, p.x, p.y, p.x, p.y, steps=3, **p.options())


def hessian(params, p):
    return fastmeta.mlp_hvp(params, [t.detach() for t in params], p.x, p.y, **p.options())


def gauss_newton(params, p):
    return fastmeta.mlp_hvp(params, [t.detach() for t in params], p.x, p.y, **p.options(), curvature="ggn")


@pytest.mark.parametrize("op", [adapt, meta_loss, hessian, gauss_newton])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("widths", "n", "tasks"), SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threads_do_not_change_a_bit(op, shared, widths, n, tasks, dtype):
    p = problem(widths, n, T=tasks, shared=shared, loss="mse" if widths[-1] == 1 else "cross_entropy", dtype=dtype)
    differentiated = op in (adapt, meta_loss)  # the derivative of a product is PyTorch's
    with fastmeta.backend("ext"):
        check_threads(lambda: values_and_grads(lambda *t: op(t, p), p.params) if differentiated else op(p.params, p))

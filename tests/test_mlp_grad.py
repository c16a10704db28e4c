import pytest
import torch
from compare import check_against_reference
from hypothesis import given, settings
from mlp_cases import ACTIVATIONS, LOSSES, problem, problems
from test_mlp_loss import tensors

import fastmeta


def op(p):
    n = len(p.flat)

    def fn(*t):
        return fastmeta.mlp_grad(p.tree(t[:n]), t[n], t[n + 1] if p.loss == "mse" else p.y, **p.options())

    return fn


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_reference_equals_autograd(activation, loss):
    """The written-out backpropagation, against autograd through the loss of each task alone."""
    p = problem((3, 6, 5, 4), 7, activation=activation, loss=loss)
    with fastmeta.backend("reference"):
        losses, grads = fastmeta.mlp_grad(p.params, p.x, p.y, **p.options())
        for t in range(3):
            leaves = [w.clone().requires_grad_() for w in p.params]
            value = fastmeta.mlp_loss(leaves, p.x[t], p.y[t], **p.options())
            torch.testing.assert_close(value, losses[t])
            torch.testing.assert_close(tuple(g[t] for g in grads), torch.autograd.grad(value, leaves))


@settings(max_examples=40, deadline=None)
@given(problems())
def test_any_net(p):
    check_against_reference(op(p), tensors(p), "ext")


def test_float32():
    p = problem((7, 33, 4), 17, dtype=torch.float32)
    check_against_reference(op(p), tensors(p), "ext")


def test_missing_bias_stays_none():
    p = problem((3, 4, 2), 5, bias=False)
    assert [g is None for g in fastmeta.mlp_grad(p.params, p.x, p.y)[1]] == [False, True, False, True]


def test_errors():
    with pytest.raises(ValueError, match="mlp_grad: params must be a sequence"):
        fastmeta.mlp_grad([], torch.ones(2, 3), torch.zeros(2, dtype=torch.int64))

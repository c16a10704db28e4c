import pytest
import torch

import fastmeta
from harness.compare import check_against_reference
from harness.mlp_calls import grad
from harness.mlp_cases import ACTIVATIONS, any_net, losses, native, problem

test_any_net = any_net(grad)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@losses
def test_the_reference_equals_autograd(activation, loss):
    """The written-out backpropagation, against autograd through the loss of each task alone."""
    p = problem((3, 6, 5, 4), 7, activation=activation, loss=loss)
    with fastmeta.backend("reference"):
        values, grads = fastmeta.mlp_grad(p.params, p.x, p.y, **p.options())
        for t in range(3):
            leaves = [w.clone().requires_grad_() for w in p.params]
            value = fastmeta.mlp_loss(leaves, p.x[t], p.y[t], **p.options())
            torch.testing.assert_close(value, values[t])
            torch.testing.assert_close(tuple(g[t] for g in grads), torch.autograd.grad(value, leaves))


@native
def test_float32(backend):
    p = problem((7, 33, 4), 17, dtype=torch.float32)
    check_against_reference(*grad(p), backend)


@native
def test_missing_bias_stays_none(backend):
    p = problem((3, 4, 2), 5, bias=False)
    assert [g is None for g in fastmeta.mlp_grad(p.params, p.x, p.y)[1]] == [False, True, False, True]


@native
def test_errors(backend):
    with pytest.raises(ValueError, match="mlp_grad: params must be a sequence"):
        fastmeta.mlp_grad([], torch.ones(2, 3), torch.zeros(2, dtype=torch.int64))

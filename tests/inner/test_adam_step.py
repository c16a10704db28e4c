import pytest
import torch

import fastmeta
from harness.cases import DTYPES, PROTO
from harness.step_cases import LISTS, check_errors, check_lists, check_threads_of, check_torch

OPTIONS = {"betas": (0.8, 0.99), "weight_decay": 0.1}


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_of_torch(dtype):
    def ours(step, p, g, state):
        return fastmeta.adam_step(p, g, *state, 0.1, step=step, **OPTIONS)

    check_torch(torch.optim.Adam, OPTIONS, ours, 2, dtype)


@pytest.mark.parametrize(("backend", "dtype", "rates", "shared"), [(*of, i % 2 == 1) for i, of in enumerate(LISTS)])
def test_lists_match_reference(backend, dtype, rates, shared):
    """Each kind of rates, and each dtype, with shared parameters and without; momentum_step, of these lists too, meets every pair."""

    def step(p, g, m, v, lr):
        return fastmeta.adam_step(p, g, m, [x.square() for x in v], lr, step=3, **OPTIONS)

    check_lists(step, 2, backend, dtype, rates, shared)


@pytest.mark.parametrize("order", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_learned_numbers(order):
    """betas and weight decay that are tensors get gradients."""
    tensors = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    numbers = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.1, 0.9, 0.99, 0.2)]

    def fn(p, g, m, v, lr, beta1, beta2, decay):
        return fastmeta.adam_step(p, g, m, v.square(), lr, step=2, betas=(beta1, beta2), weight_decay=decay)

    assert order(fn, [*tensors, *numbers])


@pytest.mark.parametrize("backend", PROTO, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_gradient_has_the_limit_as_derivative(backend, dtype):
    """d theta' / dg = -lr / eps in the first step, whose m' is g; and finite derivatives of second order."""
    zero = torch.zeros(5, dtype=dtype)
    p, g = zero.clone().requires_grad_(), zero.clone().requires_grad_()
    stepped, _, _ = fastmeta.adam_step(p, g, zero, zero, 0.1, step=1, eps=0.01)
    (dg,) = torch.autograd.grad(stepped.sum(), g, retain_graph=True)
    torch.testing.assert_close(dg, torch.full_like(g, -10))
    (dg,) = torch.autograd.grad(stepped.sum(), g, create_graph=True)
    assert all(
        x.isfinite().all() for x in torch.autograd.grad(dg.sum(), [p, g], allow_unused=True, materialize_grads=True)
    )


@pytest.mark.cpu
def test_threads_do_not_change_a_bit():
    check_threads_of(lambda *args: fastmeta.adam_step(*args, step=2), 2)


def test_errors():
    check_errors("adam_step", 2, {"step": 1}, "means")
    x = torch.ones(2)
    for wrong, message in (
        ({"step": 0}, "step must be at least 1, got 0"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be in \[0, 1\), got 1.0"),
        ({"betas": 0.9}, "betas must be two, got 0.9"),
        ({"eps": 0.0}, "eps must be a positive number, got 0.0"),
    ):
        with pytest.raises(ValueError, match="adam_step: " + message):
            fastmeta.adam_step(x, x, x, x, 0.1, **{"step": 1} | wrong)

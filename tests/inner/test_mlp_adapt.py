import pytest
import torch
from hypothesis import strategies as st

import fastmeta
from harness.compare import check_against_reference
from harness.mlp_calls import adapt
from harness.mlp_cases import RATES, any_net, every_rate, everywhere, native, problem

test_any_net = any_net(adapt, st.sampled_from(RATES), st.integers(1, 6), st.booleans(), max_examples=30)


@everywhere
def test_equals_sgd_by_hand(backend):
    p = problem((3, 5, 4), 7)
    ours = fastmeta.mlp_adapt(p.params, 0.1, p.x, p.y, steps=3, activation="tanh")
    for task in range(3):
        theta = [t.clone().requires_grad_() for t in p.params]
        for _ in range(3):
            loss = fastmeta.mlp_loss(theta, p.x[task], p.y[task], activation="tanh")
            theta = [t - 0.1 * g for t, g in zip(theta, torch.autograd.grad(loss, theta), strict=True)]
        torch.testing.assert_close([a[task] for a in ours], [t.detach() for t in theta])


@every_rate
@native
def test_all_rates(backend, kind, first_order, loss):
    for shared in (True, False):
        p = problem((3, 5, 4), 7, loss=loss, shared=shared)
        check_against_reference(*adapt(p, kind, 3, first_order), backend)


@native
def test_float32(backend):
    p = problem((7, 33, 4), 17, dtype=torch.float32)
    check_against_reference(*adapt(p, "per element", 2), backend)


@native
def test_no_steps_and_one_rate_number(backend):
    p = problem((3, 4, 2), 5)
    for a, b in zip(fastmeta.mlp_adapt(p.params, 0.1, p.x, p.y, steps=0), p.params, strict=True):
        assert torch.equal(a, b.expand_as(a))
    numbers = fastmeta.mlp_adapt(p.params, [0.1] * 4, p.x, p.y, steps=2)
    one = fastmeta.mlp_adapt(p.params, 0.1, p.x, p.y, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(numbers, one, strict=True))


@native
def test_errors(backend):
    p = problem((3, 4, 2), 5)
    for lr, steps, message in (
        ([0.1], 1, "lr must have one entry for each of the 4 params, got 1"),
        (torch.ones(3).double(), 2, r"lr must have shape \[\] or \[2\], got \[3\]"),
        (float("inf"), 1, "lr must be finite, got inf"),
        (0.1, -1, "steps must be at least 0, got -1"),
        ([p.params[0], 0.1, p.params[2], 0.1], 1, r"lr\[1\] must be of one kind with lr\[0\]"),
    ):
        with pytest.raises(ValueError, match="mlp_adapt: " + message):
            fastmeta.mlp_adapt(p.params, lr, p.x, p.y, steps=steps)


@pytest.mark.parametrize("backend", ["auto", "reference"], indirect=True)
def test_no_steps_under_vmap_of_a_gradient(backend):
    params, lr = [torch.randn(1, 3, 2), torch.randn(1, 3)], torch.tensor(0.1)
    x, y = torch.randn(1, 4, 2), torch.randint(0, 3, (1, 4))

    def total(w, b, lr):
        return sum(p.square().sum() for p in fastmeta.mlp_adapt([w, b], lr, x, y, steps=0))

    stacks = [torch.stack([t, 2 * t]) for t in (*params, lr)]
    w, b, rate = torch.vmap(torch.func.grad(total, (0, 1, 2)))(*stacks)
    torch.testing.assert_close([w, b, rate], [2 * stacks[0], 2 * stacks[1], torch.zeros(2)])

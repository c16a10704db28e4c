import pytest
import torch
from hypothesis import strategies as st

import fastmeta
from harness.compare import check_against_reference, check_threads
from harness.conv_cases import any_net, both, ext, kinds, module, problem, same, single, task_loss
from harness.mlp_calls import adapt
from harness.mlp_cases import RATES, losses

test_any_net = any_net(adapt, st.sampled_from(RATES), st.integers(0, 4), st.booleans())


@kinds
@losses
@both
def test_equals_plain_steps(backend, kind, loss):
    p = problem(kind, size=12, loss=loss)
    adapted = fastmeta.conv_adapt(p.params, 0.1, p.x, p.y, steps=3, **p.options())
    for t in range(3):
        model = module(p, t)
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            optimiser.zero_grad()
            task_loss(model(p.x[t]), p.y[t]).backward()
            optimiser.step()
        same([x[t] for x in adapted if x is not None], [x.detach() for x in model.parameters()])


@pytest.mark.parametrize("kind", RATES)
@pytest.mark.parametrize("first_order", [False, True])
@ext
def test_all_rates(backend, kind, first_order):
    for shared, loss in ((True, "cross_entropy"), (False, "mse")):
        check_against_reference(*adapt(problem(shared=shared, loss=loss, bias=shared), kind, 3, first_order), "ext")


@ext
def test_float32(backend):
    """Over several draws: the gradient of a rate is one number."""
    check_against_reference(adapt(single(), "scalar", 2)[0], lambda: adapt(single(), "scalar", 2)[1], "ext")


@ext
def test_steps_that_are_not_kept_are_computed_again(backend):
    """Of 25 images the steps outgrow what is kept."""
    check_against_reference(*adapt(problem(n=25, channels=32, inputs=1, size=28, T=1), "scalar", 4), "ext")


@ext
def test_threads_do_not_change_a_bit(backend):
    p = problem(T=7)
    params = p.tree([t.requires_grad_() for t in p.flat])

    def compute():
        found = [x for x in fastmeta.conv_adapt(params, 0.1, p.x, p.y, steps=3, **p.options()) if x is not None]
        return [*(x.detach() for x in found), *torch.autograd.grad(sum(x.sum() for x in found), p.flat)]

    check_threads(compute)


@both
def test_errors(backend):
    p = problem()
    for lr, steps, message in (
        ([0.1, 0.1], 1, "lr must have one entry for each of the 10 params, got 2"),
        (float("nan"), 1, "lr must be finite, got nan"),
        (0.1, -1, "steps must be at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match="conv_adapt: " + message):
            fastmeta.conv_adapt(p.params, lr, p.x, p.y, steps=steps, **p.options())

import pytest
import torch

import fastmeta
from harness.cases import DTYPES
from harness.step_cases import LISTS, check_errors, check_lists, check_threads_of, check_torch

OPTIONS = {"momentum": 0.9, "weight_decay": 0.1}


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_of_torch(dtype, nesterov):
    options = OPTIONS | {"nesterov": nesterov}
    check_torch(
        torch.optim.SGD, options, lambda _, p, g, state: fastmeta.momentum_step(p, g, *state, 0.1, **options), 1, dtype
    )


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("backend", "dtype", "rates", "nesterov"), [(*of, i % 2 == 1) for i, of in enumerate(LISTS)]
)  # each kind of rates, and each dtype, with both
def test_lists_match_reference(backend, dtype, rates, nesterov, shared):
    options = OPTIONS | {"nesterov": True} if nesterov != shared else {"momentum": 0.9}
    check_lists(lambda *args: fastmeta.momentum_step(*args, **options), 1, backend, dtype, rates, shared)


@pytest.mark.parametrize("order", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_learned_numbers(order):
    """momentum and weight decay that are tensors get gradients."""
    tensors = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    numbers = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.1, 0.9, 0.2)]

    def fn(p, g, b, lr, mu, decay):
        return fastmeta.momentum_step(p, g, b, lr, momentum=mu, weight_decay=decay, nesterov=True)

    assert order(fn, [*tensors, *numbers])


@pytest.mark.cpu
def test_threads_do_not_change_a_bit():
    check_threads_of(lambda *args: fastmeta.momentum_step(*args, **OPTIONS), 1)


def test_errors():
    check_errors("momentum_step", 1, {"momentum": 0.9}, "velocities")
    x = torch.ones(2)
    with pytest.raises(ValueError, match="momentum_step: momentum must not be 0 with nesterov"):
        fastmeta.momentum_step(x, x, x, 0.1, momentum=0, nesterov=True)
    with pytest.raises(
        ValueError, match=r"momentum_step: momentum must be a number or a 0-dim tensor, got shape \[2\]"
    ):
        fastmeta.momentum_step(x, x, x, 0.1, momentum=x)

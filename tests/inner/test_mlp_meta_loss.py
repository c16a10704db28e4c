import pytest
import torch
from hypothesis import strategies as st

import fastmeta
from harness.compare import check_against_reference
from harness.mlp_calls import meta_loss
from harness.mlp_cases import RATES, any_net, every_rate, everywhere, losses, native, problem

test_any_net = any_net(meta_loss, st.sampled_from(RATES), st.integers(1, 6), st.booleans(), max_examples=30)


@everywhere
def test_equals_adapt_then_loss(backend):
    p = problem((3, 5, 4), 7)
    ours = fastmeta.mlp_meta_loss(p.params, 0.1, p.x, p.y, p.x, p.y, steps=2)
    adapted = fastmeta.mlp_adapt(p.params, 0.1, p.x, p.y, steps=2)
    torch.testing.assert_close(ours, fastmeta.mlp_loss(adapted, p.x, p.y))


@every_rate
@native
def test_all_rates(backend, kind, first_order, loss):
    for shared in (True, False):
        fn, tensors = meta_loss(problem((3, 5, 4), 7, loss=loss, shared=shared), kind, 3, first_order)
        check_against_reference(fn, tensors, backend)


@pytest.mark.parametrize("kind", ["scalar", "per step", "per tensor"])
@pytest.mark.parametrize("first_order", [False, True])
@losses
@pytest.mark.parametrize("n", [0, 1, 6])
def test_head_of_many_features(n, loss, first_order, kind):
    """Few examples of many features, many steps: the native kernel goes over to the Gram matrix of the features."""
    for shared, bias, features in ((True, True, 130), (False, True, 128), (True, False, 97)):
        fn, tensors = meta_loss(problem((features, 3), n, loss=loss, shared=shared, bias=bias), kind, 6, first_order)
        check_against_reference(fn, tensors, "ext")
        no_inputs = 2 if loss == "cross_entropy" else 4  # gradients to the head and the rates alone

        def of_head(*t, fn=fn, rest=tensors[-no_inputs:]):
            return fn(*t, *rest)

        check_against_reference(of_head, tensors[:-no_inputs], "ext")


@native
def test_float32(backend):
    """Over several draws: the gradient of a rate is one number."""

    def drawn():
        return meta_loss(problem((7, 33, 4), 10, loss="mse", activation="relu", dtype=torch.float32), "scalar", 5)

    check_against_reference(drawn()[0], lambda: drawn()[1], backend)


@native
def test_errors(backend):
    p = problem((3, 4, 2), 5)
    for x, y, message in (
        (p.x, p.y[:, :2], r"query_y must have shape \[3, 5\], got \[3, 2\]"),
        (p.x[..., :2], p.y, r"query_x must have 3 features, as params\[0\], got shape \[3, 5, 2\]"),
    ):
        with pytest.raises(ValueError, match="mlp_meta_loss: " + message):
            fastmeta.mlp_meta_loss(p.params, 0.1, p.x, p.y, x, y, steps=1)

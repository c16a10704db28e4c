import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmeta
from harness.compare import check_against_reference
from harness.mlp_calls import meta_loss
from harness.mlp_cases import KERNELS, RATES, any_problem, native, native_by_name, problem


@pytest.mark.parametrize("backend", [*KERNELS, "reference"], indirect=True)
def test_equals_adapt_then_loss(backend):
    p = problem((3, 5, 4), 7)
    ours = fastmeta.mlp_meta_loss(p.params, 0.1, p.x, p.y, p.x, p.y, steps=2)
    adapted = fastmeta.mlp_adapt(p.params, 0.1, p.x, p.y, steps=2)
    torch.testing.assert_close(ours, fastmeta.mlp_loss(adapted, p.x, p.y))


@pytest.mark.parametrize("kind", RATES)
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@native
def test_all_rates(backend, kind, first_order, loss):
    for shared in (True, False):
        fn, tensors = meta_loss(problem((3, 5, 4), 7, loss=loss, shared=shared), kind, 3, first_order)
        check_against_reference(fn, tensors, backend)


@pytest.mark.parametrize("kind", ["scalar", "per step", "per tensor"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
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


@native_by_name
@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from(RATES), st.integers(1, 6), st.booleans())
def test_any_net(backend, data, kind, steps, first_order):
    p = any_problem(data, backend)
    fn, tensors = meta_loss(p, kind, steps, first_order)
    check_against_reference(fn, tensors, backend)


@native
def test_float32(backend):
    fn, tensors = meta_loss(
        problem((1, 40, 40, 1), 10, loss="mse", activation="relu", dtype=torch.float32), "scalar", 5
    )
    check_against_reference(fn, tensors, backend)


@native
def test_errors(backend):
    p = problem((3, 4, 2), 5)
    with pytest.raises(ValueError, match=r"mlp_meta_loss: query_y must have shape \[3, 5\], got \[3, 2\]"):
        fastmeta.mlp_meta_loss(p.params, 0.1, p.x, p.y, p.x, p.y[:, :2], steps=1)
    with pytest.raises(
        ValueError, match=r"mlp_meta_loss: query_x must have 3 features, as params\[0\], got shape \[3, 5, 2\]"
    ):
        fastmeta.mlp_meta_loss(p.params, 0.1, p.x, p.y, p.x[..., :2], p.y, steps=1)

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmeta
from harness.cases import DTYPES, KERNELS, PROTO, randn
from harness.compare import check_against_reference, check_threads, values_and_grads
from harness.distance_cases import labels_of


def test_by_hand():
    support = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]])
    out = fastmeta.prototypes(support, torch.tensor([0, 0, 1]), 2)
    assert out.tolist() == [[2.0, 3.0], [10.0, 20.0]]


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("lead", "S", "N", "D"), [((), 1, 1, 1), ((3,), 7, 3, 5), ((), 25, 5, 67), ((2, 2), 13, 2, 129)]
)
def test_matches_reference(backend, dtype, lead, S, N, D):
    labels = labels_of(N, *lead, S)
    check_against_reference(lambda s: fastmeta.prototypes(s, labels, N), [randn(*lead, S, D, dtype=dtype)], backend)


@pytest.mark.parametrize("backend", PROTO)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_class(backend, value):
    support = torch.ones(4, 2)
    support[0, 0] = value
    with fastmeta.backend(backend):
        found = fastmeta.prototypes(support, torch.tensor([0, 0, 1, 1]), 2)
    assert found.isfinite().tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize("backend", KERNELS)
def test_strided_and_empty(backend):
    labels = torch.tensor([0, 1, 0, 1])
    check_against_reference(lambda s: fastmeta.prototypes(s.mT, labels, 2), [randn(3, 4)], backend)
    check_against_reference(
        lambda s: fastmeta.prototypes(s[:, ::2], labels[::2].expand(2, 2) * 0, 1), [randn(2, 4, 3)], backend
    )
    with fastmeta.backend(backend):
        assert fastmeta.prototypes(torch.ones(0, 4, 3), torch.ones(0, 4, dtype=torch.int64), 2).shape == (0, 2, 3)
        assert fastmeta.prototypes(torch.ones(4, 0), labels, 2).shape == (2, 0)


@pytest.mark.cpu
@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 4), st.integers(1, 40), st.integers(0, 2**31))
def test_any_shape(T, K, N, D, seed):
    torch.manual_seed(seed)
    labels = torch.arange(N).repeat(K)[torch.randperm(N * K)].expand(T, N * K)
    check_against_reference(
        lambda s: fastmeta.prototypes(s, labels, N), [randn(T, N * K, D, dtype=torch.float32)], "ext"
    )


@pytest.mark.cpu
def test_threads_do_not_change_a_bit():
    labels = torch.arange(5).repeat(20).expand(6, 100)
    support = randn(6, 100, 200, dtype=torch.float32)
    check_threads(lambda: values_and_grads(lambda s: fastmeta.prototypes(s, labels, 5), [support]))


@pytest.mark.cpu
def test_errors():
    support, labels = torch.ones(4, 2), torch.tensor([0, 1, 0, 1])
    for given_, kind, message in (
        ((support.long(), labels, 2), TypeError, "support must be float32, .* got torch.int64"),
        ((support, labels.float(), 2), TypeError, "labels must be int64 class indices, got torch.float32"),
        ((support, labels[:3], 2), ValueError, r"labels must have shape \[4\], got \[3\]"),
        ((support, labels, 1), ValueError, r"labels must be in \[0, 1\), got 1"),
        ((support, labels, 3), ValueError, "every class must have a support example, got none of class 2 in task 0"),
        ((support, labels, 0), ValueError, "num_classes must be at least 1, got 0"),
        ((support[0], labels, 2), ValueError, r"support must have at least 2 dimensions, got shape \[2\]"),
    ):
        with pytest.raises(kind, match="prototypes: " + message):
            fastmeta.prototypes(*given_)

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmeta
from harness.cases import DTYPES, PROTO, randn
from harness.compare import check_against_reference, check_threads, values_and_grads

METRICS = ("cosine", "euclidean", "sqeuclidean")


def op(labels, ways, metric="cosine", temperature=0.3):
    return lambda q, s: fastmeta.matching_log_probs(q, s, labels, ways, metric=metric, temperature=temperature)


def every_class(ways, *shape):
    """Labels of which each row has every class."""
    return torch.rand(shape).argsort(-1) % ways


@pytest.mark.parametrize("backend", PROTO, indirect=True)
def test_by_hand(backend):
    query, support = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0], [-4.0, 0.0]])  # cos 1, 0, -1
    out = fastmeta.matching_log_probs(query, support, torch.tensor([0, 1, 0]), 2, temperature=0.5)
    weights = [math.exp(2), 1.0, math.exp(-2)]
    expected = [[math.log((weights[0] + weights[2]) / sum(weights)), math.log(weights[1] / sum(weights))]]
    torch.testing.assert_close(out, torch.tensor(expected))


@pytest.mark.parametrize("backend", PROTO, indirect=True)
def test_equals_attention_written_out(backend):
    """softmax over torch.cosine_similarity, times one-hot labels."""
    query, support, labels = randn(6, 7), randn(9, 7), every_class(4, 9)
    attention = (torch.cosine_similarity(query.unsqueeze(1), support, -1) / 0.3).softmax(-1)
    torch.testing.assert_close(op(labels, 4)(query, support).exp(), attention @ F.one_hot(labels, 4).double())


@pytest.mark.parametrize("backend", PROTO)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("lead", "Q", "S", "N", "D"), [((), 1, 1, 1, 1), ((2,), 7, 5, 3, 3), ((), 75, 25, 5, 64), ((2, 2), 5, 20, 20, 33)]
)
def test_matches_reference(backend, metric, dtype, lead, Q, S, N, D):
    Q = (
        min(Q, 35) if backend == "triton" else Q
    )  # the interpreter is slow; more than 64 queries are two groups to "ext"
    labels, scale = every_class(N, *lead, S), 0.3 if dtype.itemsize == 2 else 1
    temperature = {"cosine": 0.3, "euclidean": 1.0, "sqeuclidean": 2.0 * D}[metric]

    def draw():
        return [scale * randn(*lead, Q, D, dtype=dtype), scale * randn(*lead, S, D, dtype=dtype)]

    few = backend == "triton" or dtype == torch.float64  # the interpreter is slow
    check_against_reference(op(labels, N, metric, temperature), draw() if few else draw, backend)


@pytest.mark.parametrize("backend", PROTO)
@pytest.mark.parametrize("metric", METRICS)
def test_shared_strided_and_empty(backend, metric):
    labels = torch.tensor([1, 0, 1])
    check_against_reference(op(labels, 2, metric), [randn(3, 4, 5), randn(3, 5)], backend)
    check_against_reference(op(labels.expand(3, 3), 2, metric), [randn(4, 5), randn(3, 3, 5)], backend)
    check_against_reference(
        lambda q, s: op(labels.repeat_interleave(2)[::2], 2, metric)(q.mT, s[::2]), [randn(5, 4), randn(6, 5)], backend
    )
    for q, s in (((0, 5), (3, 5)), ((0, 4, 5), (0, 3, 5))):
        check_against_reference(op(labels.expand(*s[:-1]), 2, metric), [randn(*q), randn(*s)], backend)


@pytest.mark.parametrize("backend", PROTO)
def test_a_zero_vector_has_cosine_0_and_gradient_0(backend):
    query, support, labels = randn(3, 4), randn(4, 4), torch.tensor([0, 1, 1, 0])
    query[1], support[2] = 0, 0
    check_against_reference(op(labels, 2), [query, support], backend)
    with fastmeta.backend(backend):
        out, dquery, dsupport = values_and_grads(op(labels, 2), [query, support])
    assert (dquery[1] == 0).all() and (dsupport[2] == 0).all()
    torch.testing.assert_close(out[1], torch.full((2,), 0.5).double().log())  # all alike


@pytest.mark.parametrize("backend", PROTO, indirect=True)
def test_a_class_far_behind_keeps_its_digits(backend):
    """float32, where exp(-300) is 0."""
    query, support = torch.tensor([[0.0]]), torch.tensor([[0.0], [300.0], [301.0]])
    out = fastmeta.matching_log_probs(query, support, torch.tensor([0, 1, 1]), 2, metric="euclidean")
    torch.testing.assert_close(out, torch.tensor([[0.0, -300 + math.log1p(math.exp(-1))]]))


@pytest.mark.parametrize("backend", PROTO, indirect=True)
def test_nan_is_not_hidden(backend):
    query, support, labels = randn(3, 4), randn(2, 4), torch.tensor([0, 1])
    query[1, 2] = torch.nan
    for metric in METRICS:
        out = op(labels, 2, metric)(query, support)
        assert out.isnan().all(-1).tolist() == [False, True, False]


@pytest.mark.cpu
@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(METRICS),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 70),
    st.integers(0, 2**31),
)
def test_any_shape(metric, T, Q, S, N, D, seed):
    torch.manual_seed(seed)
    N = min(N, S)
    D += metric == "cosine"  # in one dimension a cosine is constant: its gradient, 0, has no digits
    temperature = {"cosine": 0.3, "euclidean": 1.0, "sqeuclidean": 2.0 * D}[metric]
    check_against_reference(
        op(every_class(N, T, S), N, metric, temperature),
        lambda: [randn(T, Q, D, dtype=torch.float32), randn(T, S, D, dtype=torch.float32)],
        "ext",
    )


@pytest.mark.cpu
def test_threads_do_not_change_a_bit():
    q, s, labels = randn(3, 300, 64, dtype=torch.float32), randn(3, 50, 64, dtype=torch.float32), every_class(5, 3, 50)
    check_threads(lambda: values_and_grads(op(labels, 5), [q, s]))


@pytest.mark.cpu
def test_errors():
    q, s, labels = torch.ones(4, 3), torch.ones(2, 3), torch.tensor([0, 1])
    for bad, message in (
        (lambda f: f(q, s, torch.tensor([0, 2]), 2), r"labels must be in \[0, 2\), got 2"),
        (lambda f: f(q, s, labels, 3), "every class must have a support example, got none of class 2 in task 0"),
        (lambda f: f(q, s, labels, 0), "num_classes must be at least 1, got 0"),
        (lambda f: f(q, s, labels[:1], 2), r"labels must have shape \[2\], got \[1\]"),
        (lambda f: f(q, s[:0], labels[:0], 1), r"support must hold at least one example, got shape \[0, 3\]"),
        (lambda f: f(q, s[:, :2], labels, 2), "query and support must have the same number of features"),
        (
            lambda f: f(q, s, labels, 2, metric="dot"),
            "metric must be one of 'euclidean', 'sqeuclidean', 'cosine', got 'dot'",
        ),
        (lambda f: f(q, s, labels, 2, temperature=0.0), "temperature must be positive and finite, got 0.0"),
    ):
        with pytest.raises(ValueError, match="matching_log_probs: " + message):
            bad(fastmeta.matching_log_probs)
    with pytest.raises(TypeError, match="matching_log_probs: labels must be int64 class indices, got torch.float32"):
        fastmeta.matching_log_probs(q, s, labels.float(), 2)

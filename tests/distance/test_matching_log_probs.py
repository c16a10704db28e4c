import math

import pytest
import torch
import torch.nn.functional as F

import fastmeta
from harness.cases import KERNELS, PROTO, randn
from harness.compare import check_against_reference, check_threads, values_and_grads
from harness.distance_cases import (
    METRICS,
    any_shape,
    drawn,
    labels_of,
    matching,
    metrics,
    sizes_and_dtypes,
    temperature_for,
)


def on_labels(metric, lead, Q, S, D):
    ways = min(S, 7)
    return matching(labels_of(ways, *lead, S), ways, metric, temperature_for(metric, D))


test_any_shape = any_shape(on_labels)


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
    query, support, labels = randn(6, 7), randn(9, 7), labels_of(4, 9)
    attention = (torch.cosine_similarity(query.unsqueeze(1), support, -1) / 0.3).softmax(-1)
    torch.testing.assert_close(matching(labels, 4)(query, support).exp(), attention @ F.one_hot(labels, 4).double())


@sizes_and_dtypes
def test_matches_reference(backend, metric, size, dtype):
    """Over several draws where it is quick: one class behind all others carries the error."""
    draw = lambda: drawn(*size, dtype)  # noqa: E731
    few = backend == "triton" or dtype == torch.float64
    check_against_reference(on_labels(metric, *size), draw() if few else draw, backend)


@pytest.mark.parametrize("backend", KERNELS)
@metrics
def test_shared_strided_and_empty(backend, metric):
    labels = torch.tensor([1, 0, 1])
    check_against_reference(matching(labels, 2, metric), [randn(3, 4, 5), randn(3, 5)], backend)
    check_against_reference(matching(labels.expand(3, 3), 2, metric), [randn(4, 5), randn(3, 3, 5)], backend)
    strided = matching(labels.repeat_interleave(2)[::2], 2, metric)
    check_against_reference(lambda q, s: strided(q.mT, s[::2]), [randn(5, 4), randn(6, 5)], backend)
    for q, s in (((0, 5), (3, 5)), ((0, 4, 5), (0, 3, 5))):
        check_against_reference(matching(labels.expand(*s[:-1]), 2, metric), [randn(*q), randn(*s)], backend)


@pytest.mark.parametrize("backend", PROTO)
def test_a_zero_vector_has_cosine_0_and_gradient_0(backend):
    query, support, labels = randn(3, 4), randn(4, 4), torch.tensor([0, 1, 1, 0])
    query[1], support[2] = 0, 0
    check_against_reference(matching(labels, 2), [query, support], backend)
    with fastmeta.backend(backend):
        out, dquery, dsupport = values_and_grads(matching(labels, 2), [query, support])
    assert (dquery[1] == 0).all() and (dsupport[2] == 0).all()
    torch.testing.assert_close(out[1], torch.full((2,), 0.5).double().log())  # all alike


@pytest.mark.parametrize("backend", PROTO, indirect=True)
def test_a_class_far_behind_keeps_its_digits(backend):
    """float32, where exp(-300) is 0."""
    query, support = torch.tensor([[0.0]]), torch.tensor([[0.0], [300.0], [301.0]])
    out = matching(torch.tensor([0, 1, 1]), 2, "euclidean", 1.0)(query, support)
    torch.testing.assert_close(out, torch.tensor([[0.0, -300 + math.log1p(math.exp(-1))]]))


@pytest.mark.parametrize("backend", PROTO, indirect=True)
def test_nan_is_not_hidden(backend):
    query, support, labels = randn(3, 4), randn(2, 4), torch.tensor([0, 1])
    query[1, 2] = torch.nan
    for metric in METRICS:
        assert matching(labels, 2, metric)(query, support).isnan().all(-1).tolist() == [False, True, False]


@pytest.mark.cpu
def test_threads_do_not_change_a_bit():
    op, tensors = matching(labels_of(5, 3, 50), 5), drawn((3,), 300, 50, 64, torch.float32)
    check_threads(lambda: values_and_grads(op, tensors))


@pytest.mark.cpu
def test_errors():
    q, s, labels = torch.ones(4, 3), torch.ones(2, 3), torch.tensor([0, 1])
    for args, options, message in (
        ((q, s, torch.tensor([0, 2]), 2), {}, r"labels must be in \[0, 2\), got 2"),
        ((q, s, labels, 3), {}, "every class must have a support example, got none of class 2 in task 0"),
        ((q, s, labels, 0), {}, "num_classes must be at least 1, got 0"),
        ((q, s, labels[:1], 2), {}, r"labels must have shape \[2\], got \[1\]"),
        ((q, s[:0], labels[:0], 1), {}, r"support must hold at least one example, got shape \[0, 3\]"),
        ((q, s[:, :2], labels, 2), {}, "query and support must have the same number of features"),
        ((q, s, labels, 2), {"metric": "dot"}, "metric must be one of 'euclidean', 'sqeuclidean', 'cosine', got 'dot'"),
        ((q, s, labels, 2), {"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
    ):
        with pytest.raises(ValueError, match="matching_log_probs: " + message):
            fastmeta.matching_log_probs(*args, **options)
    with pytest.raises(TypeError, match="matching_log_probs: labels must be int64 class indices, got torch.float32"):
        fastmeta.matching_log_probs(q, s, labels.float(), 2)

import math

import pytest
import torch

import fastmeta
from harness.cases import KERNELS, PROTO, randn
from harness.compare import check_against_reference, check_threads, values_and_grads
from harness.distance_cases import (
    any_shape,
    drawn,
    log_softmax,
    loss,
    sizes_and_dtypes,
    temperature_for,
)

METRICS = ("euclidean", "sqeuclidean")


def tempered(metric, lead, Q, N, D):
    return log_softmax(metric, temperature_for(metric, D))


test_any_shape = any_shape(tempered)


def test_by_hand():
    query, prototypes = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    for metric, d in (("euclidean", 5.0), ("sqeuclidean", 25.0)):
        out = fastmeta.proto_log_softmax(query, prototypes, metric=metric, temperature=2.0)
        expected = torch.tensor([[-d / 2 - math.log1p(math.exp(-d / 2)), -math.log1p(math.exp(-d / 2))]])
        torch.testing.assert_close(out, expected)


@sizes_and_dtypes
def test_matches_reference(backend, metric, size, dtype):
    check_against_reference(tempered(metric, *size), drawn(*size, dtype), backend)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_offsets_and_outliers(backend, metric, offset):
    def draw(outlier):
        query, prototypes = randn(9, 20, dtype=torch.float32) + offset, randn(5, 20, dtype=torch.float32) + offset
        query[3] += outlier * randn(20, dtype=torch.float32)
        return query, prototypes

    for outlier in (0, 100):
        check_against_reference(log_softmax(metric, temperature_for(metric, 20)), lambda o=outlier: draw(o), backend)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("metric", METRICS)
def test_far_cluster(backend, metric):
    """Points near each other and far from the mean, where an expanded square loses its digits even when it is centred."""

    def draw():
        query, prototypes = randn(20, 16, dtype=torch.float32), randn(12, 16, dtype=torch.float32)
        far = 250 * randn(16, dtype=torch.float32)
        query[:6] += far
        prototypes[:5] += far
        return query, prototypes

    check_against_reference(log_softmax(metric, temperature_for(metric, 16)), draw, backend)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("metric", METRICS)
def test_shared_strided_and_empty(backend, metric):
    check_against_reference(log_softmax(metric), [randn(3, 4, 5), randn(2, 5)], backend)
    check_against_reference(log_softmax(metric), [randn(4, 5), randn(3, 2, 5)], backend)
    check_against_reference(lambda q, c: log_softmax(metric)(q.mT, c[::2]), [randn(5, 4), randn(6, 5)], backend)
    for q, c, shape in (((0, 3), (2, 3), (0, 2)), ((4, 0), (2, 0), (4, 2)), ((0, 4, 3), (0, 2, 3), (0, 4, 2))):
        check_against_reference(log_softmax(metric), [randn(*q), randn(*c)], backend)
        assert log_softmax(metric)(torch.ones(q), torch.ones(c)).shape == shape


@pytest.mark.parametrize("backend", PROTO)
def test_coincident_points(backend):
    """Distance 0 exactly, gradient 0 of the euclidean distance, and the square's second derivative, which is 2 per pair
    (torch.cdist(a, b)**2 gives 0)."""
    x = randn(3, 4)
    with fastmeta.backend(backend):
        assert (fastmeta.proto_log_softmax(x, x[:1]) == 0).all()
        for t in values_and_grads(lambda q, c: log_softmax("euclidean")(q, c).diagonal(), [x, x.clone()]):
            assert t.isfinite().all()
        q = x.clone().requires_grad_()
        two = torch.cat([x[:1], x[:1] + 1e3])
        (g,) = torch.autograd.grad(log_softmax("sqeuclidean")(q[:1], two)[0, 1], q, create_graph=True)
        (h,) = torch.autograd.grad(g[0, 0], q)
    q2 = x.clone().requires_grad_()
    z = -(q2[:1].unsqueeze(1) - two).square().sum(-1)
    (g2,) = torch.autograd.grad(z.log_softmax(-1)[0, 1], q2, create_graph=True)
    torch.testing.assert_close(h, torch.autograd.grad(g2[0, 0], q2)[0])


@pytest.mark.parametrize("backend", PROTO, indirect=True)
@pytest.mark.parametrize("metric", METRICS)
def test_nan_is_not_hidden(backend, metric):
    """A NaN feature spoils its own query alone, in both ops."""
    q, c = randn(3, 4), randn(2, 4)
    q[1, 2] = torch.nan
    expected = [False, True, False]
    assert log_softmax(metric)(q, c).isnan().all(-1).tolist() == expected
    loss = fastmeta.proto_loss(q, c, torch.zeros(3, dtype=torch.int64), metric=metric, reduction="none")
    assert loss.isnan().tolist() == expected


@pytest.mark.cpu
@pytest.mark.parametrize("backend", ["ext", "reference"], indirect=True)
def test_where_cdist_loses_the_distance(backend):
    """pytorch#42479: float32 matrix products, which torch.cdist takes above 25 rows, give 0 for 109."""
    q, c = torch.full((26, 1), 512695.0), torch.tensor([[512804.0], [512695.0]])
    assert torch.cdist(q, c)[0, 0] == 0
    out = log_softmax("euclidean", temperature=100.0)(q, c)
    torch.testing.assert_close(out, torch.tensor([-1.09, 0.0]).log_softmax(-1).expand(26, 2))


@pytest.mark.parametrize("backend", KERNELS)
def test_cosine(backend):
    """Shared and per-task prototypes, a zero vector on either side; both ops."""
    targets = torch.tensor([0, 1, -100, 1]).expand(3, 4)
    for fn in (log_softmax("cosine", 0.3), loss(targets, metric="cosine", temperature=0.3)):
        for lead in ((), (3,)):
            query, prototypes = randn(3, 4, 5), randn(*lead, 2, 5)
            query[0, 1], prototypes[..., 1, :] = 0, 0
            check_against_reference(fn, [query, prototypes], backend)
    query, prototypes = randn(6, 7), randn(4, 7)
    with fastmeta.backend(backend):
        expected = torch.cosine_similarity(query.unsqueeze(1), prototypes, -1).div(0.3).log_softmax(-1)
        torch.testing.assert_close(log_softmax("cosine", 0.3)(query, prototypes), expected)


@pytest.mark.cpu
def test_threads_do_not_change_a_bit():
    q, c = randn(4, 300, 64, dtype=torch.float32), randn(4, 20, 64, dtype=torch.float32)
    check_threads(lambda: values_and_grads(log_softmax("euclidean"), [q, c]))


@pytest.mark.cpu
def test_errors():
    q, c = torch.ones(4, 3), torch.ones(2, 3)
    for args, options, message in (
        (
            (q, c[:, :2]),
            {},
            r"query and prototypes must have the same number of features, got shapes \[4, 3\] and \[2, 2\]",
        ),
        ((q, c[:0]), {}, r"prototypes must hold at least one class, got shape \[0, 3\]"),
        ((q, c), {"metric": "dot"}, "metric must be one of 'euclidean', 'sqeuclidean', 'cosine', got 'dot'"),
        ((q, c), {"metric": ["euclidean"]}, r"metric must be one of .*, got \['euclidean'\]"),
        ((q, c), {"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ((q, c), {"temperature": torch.tensor(-1.0)}, "temperature must be positive and finite, got -1.0"),
        ((q, c), {"temperature": torch.ones(2)}, r"temperature must have one element, got shape \[2\]"),
        ((q[0], c), {}, r"query must have at least 2 dimensions, got shape \[3\]"),
        (
            (torch.ones(2, 4, 3), torch.ones(3, 2, 3)),
            {},
            r"prototypes must have the batch dimensions of query, \[2\], or none",
        ),
    ):
        with pytest.raises(ValueError, match="proto_log_softmax: " + message):
            fastmeta.proto_log_softmax(*args, **options)
    for query, message in (
        (q.double(), "prototypes must have the dtype of query, torch.float64, got torch.float32"),
        (q.long(), "query must be float32, float64, float16 or bfloat16, got torch.int64"),
        (q.tolist(), "query must be a tensor, got list"),
    ):
        with pytest.raises(TypeError, match="proto_log_softmax: " + message):
            fastmeta.proto_log_softmax(query, c)

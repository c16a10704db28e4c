"""What the other tests of the distance ops do not reach in the Triton kernels: many columns, several programs to one result."""

import gc

import pytest
import torch

import fastmeta
from harness.cases import BACKENDS, case, interpreted, randn
from harness.compare import check_against_reference, values_and_grads
from harness.distance_cases import METRICS, log_softmax, loss, matching, metrics, temperature_for

pytest.importorskip("triton")


@pytest.fixture(params=["differences", "products"])
def way(request, monkeypatch):
    """That of calls with more than 32 columns: products of any size, in parts and blocks of few rows and columns."""
    if request.param == "products":
        small_products(monkeypatch)
    return request.param


def small_products(monkeypatch):
    from fastmeta.kernels import _products, _tiles

    monkeypatch.setattr(_tiles, "PRODUCTS", 0)
    monkeypatch.setattr(_tiles, "WIDE", 32)
    monkeypatch.setattr(_products, "CHUNK", 1)


def ops(metric, rows, columns, features):
    """The three ops of [rows, features] and [columns, features]."""
    targets, labels, temperature = (
        torch.arange(rows) % columns,
        torch.arange(columns) % 3,
        temperature_for(metric, features),
    )
    return (
        log_softmax(metric, temperature),
        loss(targets, metric=metric, temperature=temperature),
        matching(labels, 3, metric, temperature),
    )


@metrics
def test_one_query_expanded_over_tasks_that_share_the_other_side(metric):
    targets, labels = torch.arange(3)[:, None], torch.tensor([0, 1, 2, 0])
    for op in (log_softmax(metric), loss(targets, metric=metric), matching(labels, 3, metric)):
        check_against_reference(lambda q, c, op=op: op(q.expand(3, 1, 5), c), [randn(1, 5), randn(4, 5)], "triton")


@pytest.mark.parametrize(
    ("metric", "dtype"),
    [
        (metric, dtype)
        for metric in METRICS
        for dtype, of in ((torch.float32, metric), (torch.float16, "euclidean"), (torch.bfloat16, "cosine"))
        if of == metric or not interpreted("triton")
    ],
)
def test_many_columns(metric, dtype, way):
    """One over a block of queries, of features and of columns; in float32 over two of columns, and, with one metric, two programs
    to the gradient of a prototype. Products: three parts of queries, three blocks of columns.
    In the slow interpreter an op and a metric meet one of the two ways; test_triton_products.py has more of one."""
    rows, columns, features = (5, 65, 33) if dtype == torch.float32 else (5, 33, 65)
    if metric == "euclidean" and dtype == torch.float32:
        rows = 33
    if way == "products":
        rows, columns, features = 33, 66, 17
    turn = (METRICS.index(metric) + (way == "products")) % 2
    for fn in ops(metric, rows, columns, features)[turn :: 2 if interpreted("triton") else 1]:
        tensors = [randn(rows, features, dtype=dtype), randn(columns, features, dtype=dtype)]
        check_against_reference(fn, tensors, "triton")


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
def test_many_columns_far_from_the_origin(metric, way):
    """An offset of all features, outliers, a coincident pair and one that nearly is. An outlier's distances have their last
    bit at 0.03: its gradients are right because backward finds them with the same bits as forward."""

    def draw():
        query, prototypes = randn(9, 20, dtype=torch.float32), randn(40, 20, dtype=torch.float32)
        query[0], query[1], query[2:6] = prototypes[0], prototypes[39] + 1e-3, 100 * query[2:6]
        return [query + 1e4, prototypes + 1e4]

    check_against_reference(ops(metric, 9, 40, 20)[1], draw, "triton")
    query, prototypes = draw()
    with fastmeta.backend("triton"):
        assert fastmeta.proto_log_softmax(query[:1], prototypes, metric=metric, temperature=1e-3)[0, 0] == 0


@metrics
def test_infinity_and_nan_with_many_columns(metric, way):
    """An infinite prototype is infinitely far; a NaN spoils its own query alone."""
    query, prototypes = randn(4, 16).float(), randn(40, 16).float()
    query[1, 2] = torch.nan
    if metric != "cosine":
        prototypes[3, 0] = torch.inf
    with fastmeta.backend("triton"):
        out = fastmeta.proto_log_softmax(query, prototypes, metric=metric)
    assert out.isnan().all(-1).tolist() == out.isnan().any(-1).tolist() == [False, True, False, False]
    with fastmeta.backend("reference"):
        torch.testing.assert_close(out, fastmeta.proto_log_softmax(query, prototypes, metric=metric), equal_nan=True)


@pytest.mark.parametrize("columns", [5, 40])
def test_the_cosine_of_an_infinite_vector_is_no_number(columns, way):
    """As in the reference: it has no direction. A zero vector's is 0."""
    draw = randn(3, 16).float(), randn(columns, 16).float()
    for value in (torch.inf, 0.0):
        query, prototypes = (t.clone() for t in draw)
        query[1], prototypes[2] = value, value
        found = []
        for backend in ("triton", "reference"):
            with fastmeta.backend(backend):
                out = fastmeta.proto_log_softmax(query, prototypes, metric="cosine")
            found.append(out)
        torch.testing.assert_close(*found, equal_nan=True)
        assert found[0].isnan().all() if value else found[0].isfinite().all()


def test_tf32(allow_tf32, monkeypatch):
    """Rounded operands, exact sums: distances of 11-bit numbers, but coincident points at 0."""
    small_products(monkeypatch)
    query, prototypes = randn(5, 48).float(), randn(40, 48).float()
    query[0] = prototypes[7]
    with fastmeta.backend("triton"):
        ours = values_and_grads(ops("sqeuclidean", 5, 40, 48)[0], [query, prototypes])
        assert fastmeta.proto_log_softmax(query[:1], prototypes, temperature=1e-3)[0, 7] == 0
    truth = values_and_grads(ops("sqeuclidean", 5, 40, 48)[0], [query.double(), prototypes.double()])
    for found, expected in zip(ours, truth, strict=True):
        error, size = (x.double().square().mean().sqrt() for x in (found - expected, expected))
        assert 1e-7 * size < error < 2e-3 * size


@pytest.mark.parametrize("rows", [70, 300])
def test_programs_that_share_a_result(rows):
    """Several own the queries of a task's loss, and of a prototype's gradient; nothing depends on the order in which they arrive."""
    targets = torch.randint(0, 5, (2, rows))
    targets[0, :9] = -100
    for reduction in ("mean", "sum"):
        check_against_reference(
            lambda q, c, r=reduction: fastmeta.proto_loss(q, c, targets, reduction=r),
            [randn(2, rows, 16, dtype=torch.float32), randn(2, 5, 16, dtype=torch.float32)],
            "triton",
        )


def test_no_tensor_outlives_a_call():
    """What a call leaves in memory, a CUDA graph's pool may give to another; then the next call finds anything there."""
    targets = torch.arange(130) % 5
    gc.collect()
    before = {id(x) for x in gc.get_objects() if issubclass(type(x), torch.Tensor)}
    for op in (op for op, backends in BACKENDS.items() if "triton" in backends):
        c = case(op, dtype=torch.float32)
        with fastmeta.backend("triton"):
            values_and_grads(c.fn, c.tensors)
    with fastmeta.backend("triton"):  # several programs to one result
        values_and_grads(lambda q, p: fastmeta.proto_loss(q, p, targets), [randn(130, 4), randn(5, 4)])
    del c
    gc.collect()
    left = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and id(x) not in before]
    assert [(x.shape, x.dtype) for x in left] == []


def test_a_label_out_of_range_and_an_empty_class():
    """As on CUDA, where the op does not look: NaN for the task, gradients too; -inf, and no gradient from it."""
    from fastmeta.kernels.matching_log_probs import matching_log_probs_bwd, matching_log_probs_fwd

    query, support, needs = randn(2, 3, 4), randn(2, 3, 4), (True, True, False, False)
    labels = torch.tensor([[0, 1, 3], [0, 2, 0]])
    inputs = query, support, labels, 0.5, 3, "euclidean"
    (out,), saved = matching_log_probs_fwd(*inputs, needs)
    assert out[0].isnan().all() and (out[1, :, 1] == -torch.inf).all() and out[1, :, ::2].isfinite().all()
    for grad in matching_log_probs_bwd((torch.ones_like(out),), saved, *inputs, needs):
        assert grad[0].isnan().all() and grad[1].isfinite().all()


def test_temperature_of_many_columns(way):
    """In float64: of one number the error in float32 would tell over many draws only."""
    for metric in METRICS:
        temperature = torch.tensor(temperature_for(metric, 17), dtype=torch.float64)
        check_against_reference(
            lambda q, c, t, m=metric: fastmeta.proto_loss(q, c, torch.arange(5), metric=m, temperature=t),
            [randn(5, 17), randn(40, 17), temperature],
            "triton",
        )

"""What the tests of the ops of distances share: sizes, temperatures, and checks that hold for each of them."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmeta
from harness.cases import DTYPES, KERNELS, interpreted, randn
from harness.compare import check_against_reference

METRICS = ("euclidean", "sqeuclidean", "cosine")
metrics = pytest.mark.parametrize("metric", METRICS)
SMALL = [((), 1, 1, 2), ((2,), 7, 5, 3), ((2, 2), 3, 2, 33)]  # lead, queries, columns, features
SIZES = {  # more than 64 queries are two groups to "ext"; one over a block, of which a smaller one in the slow interpreter
    "ext": [*SMALL, ((), 75, 37, 64)],
    "triton": [*SMALL, ((), 17, 17, 33)],
}
IN_TURN = {torch.float64: "euclidean", torch.float16: "cosine", torch.bfloat16: "sqeuclidean"}


def apart(q, c, metric):
    """Distances [..., Q, N], by a formula of their own."""
    square = (q.unsqueeze(-2) - c.unsqueeze(-3)).square().sum(-1)
    return {
        "euclidean": square.sqrt,
        "sqeuclidean": lambda: square,
        "cosine": lambda: 1 - F.cosine_similarity(q.unsqueeze(-2), c.unsqueeze(-3), dim=-1),
    }[metric]()


def _met(backend, metric, size, dtype):
    """In the slow interpreter each metric meets each size in float32, and each other dtype the largest with one metric."""
    return not interpreted(backend) or dtype == torch.float32 or (size not in SMALL and IN_TURN[dtype] == metric)


sizes_and_dtypes = pytest.mark.parametrize(
    ("backend", "metric", "size", "dtype"),
    [
        (backend, metric, size, dtype)
        for backend, metric, dtype in itertools.product(KERNELS, METRICS, DTYPES)
        for size in SIZES[backend]
        if _met(backend, metric, size, dtype)
    ],
    ids=str,
)


def temperature_for(metric, D):
    """One that keeps the logits near 1, so that no single saturated pair carries all of the error."""
    return {"sqeuclidean": 2.0 * D, "euclidean": 1.0, "cosine": 0.3}[metric]


def labels_of(ways, *shape):
    """Labels of which each row has every class."""
    return torch.rand(shape).argsort(-1) % ways


def log_softmax(metric, temperature=1.0):
    return lambda q, c: fastmeta.proto_log_softmax(q, c, metric=metric, temperature=temperature)


def loss(targets, **options):
    return lambda q, c: fastmeta.proto_loss(q, c, targets, **options)


def matching(labels, ways, metric="cosine", temperature=0.3):
    return lambda q, s: fastmeta.matching_log_probs(q, s, labels, ways, metric=metric, temperature=temperature)


def any_shape(op_of):
    """A test: `op_of(metric, lead, Q, N, D)` on random sizes in float32."""

    @pytest.mark.cpu
    @settings(max_examples=40)
    @given(
        st.sampled_from(METRICS), st.integers(1, 3), st.integers(1, 90), st.integers(1, 40), st.integers(2, 70),
        st.integers(0, 2**31),
    )  # fmt: skip
    def test(metric, T, Q, N, D, seed):
        """In one dimension a cosine is constant: its gradient, 0, has no digits."""
        torch.manual_seed(seed)
        draw = lambda: [randn(T, Q, D, dtype=torch.float32), randn(T, N, D, dtype=torch.float32)]  # noqa: E731
        check_against_reference(op_of(metric, (T,), Q, N, D), draw, "ext")

    return test


def drawn(lead, Q, N, D, dtype):
    scale = 1 if dtype.itemsize > 2 else 0.3
    return [scale * randn(*lead, Q, D, dtype=dtype), scale * randn(*lead, N, D, dtype=dtype)]

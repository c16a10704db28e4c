"""symmetric_loss: the cross-entropy of one matrix of logits by its rows and by its columns."""

import pytest
import torch
import torch.nn.functional as F

import fastmeta
from harness.cases import PROTO, randn
from harness.compare import check_against_reference, check_threads, values_and_grads
from harness.distance_cases import metrics, temperature_for


def formula(q, k, t, metric):
    square = (q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1)
    apart = {
        "euclidean": lambda: torch.where(square == 0, 0, square).sqrt(),
        "sqeuclidean": lambda: square,
        "cosine": lambda: 1 - F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT,
    }[metric]()
    logits, own = -apart / t, torch.arange(q.shape[-2])
    each = [(F.cross_entropy(z, own) + F.cross_entropy(z.mT, own)) / 2 for z in logits.reshape(-1, *logits.shape[-2:])]
    return torch.stack(each).reshape(q.shape[:-2])


def drawn(metric, *shape, dtype=torch.float64):
    t = torch.tensor(temperature_for(metric, shape[-1]), dtype=dtype)
    return [randn(*shape, dtype=dtype), randn(*shape, dtype=dtype), t]


def ours(metric):
    return lambda q, k, t: fastmeta.symmetric_loss(q, k, metric=metric, temperature=t)


@metrics
@pytest.mark.parametrize("backend", PROTO, indirect=True)
def test_is_its_formula(backend, metric):
    tensors, truth = drawn(metric, 2, 7, 5), lambda *x: formula(*x, metric)
    torch.testing.assert_close(values_and_grads(ours(metric), tensors), values_and_grads(truth, tensors))
    if backend == "triton":
        return
    leaves = [x.requires_grad_() for x in tensors]

    def second(fn):
        first = torch.autograd.grad(fn(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    torch.testing.assert_close(second(ours(metric)), second(truth))


@pytest.mark.parametrize(
    ("metric", "shape"),
    [
        ("cosine", (70, 65)),
        ("euclidean", (33, 4)),  # more than 8 D: the distances are not kept
        ("sqeuclidean", (2, 65, 67)),
        ("cosine", (2, 2, 3, 4)),
        ("euclidean", (1, 3)),
    ],
)
def test_is_as_exact_as_the_reference(metric, shape):
    check_against_reference(ours(metric), lambda: drawn(metric, *shape, dtype=torch.float32), "ext")
    tensors = drawn(metric, *shape, dtype=torch.float32)
    check_threads(lambda: values_and_grads(ours(metric), tensors))


@pytest.mark.parametrize("B", [6, 33])  # 33: the distances are not kept
def test_zero_vectors_and_sixteen_bits(B):
    q, k, t = drawn("cosine", B, 4)
    q[1], k[1], k[4] = 0, 0, 0
    torch.testing.assert_close(
        values_and_grads(ours("cosine"), [q, k, t])[:1],
        values_and_grads(lambda *x: formula(*x, "cosine"), [q, k, t])[:1],
    )
    with fastmeta.backend("reference"):
        expected = values_and_grads(ours("cosine"), [q, k, t])
    torch.testing.assert_close(values_and_grads(ours("cosine"), [q, k, t]), expected)
    narrow = values_and_grads(ours("cosine"), [x.bfloat16() for x in (q, k, t)])
    assert {x.dtype for x in narrow} == {torch.bfloat16}
    torch.testing.assert_close([x.double() for x in narrow], expected, rtol=3e-2, atol=3e-2)


@pytest.mark.cpu
def test_errors():
    x = torch.ones(4, 3)
    for q, k, options, error, message in (
        (x, x[:3], {}, ValueError, r"keys must have the shape of query, \[4, 3\], got \[3, 3\]"),
        (x[:0], x[:0], {}, ValueError, "keys must hold at least one example"),
        (x, x.double(), {}, TypeError, "keys must have the dtype of query"),
        (x, x, {"temperature": -1.0}, ValueError, "temperature must be positive and finite, got -1"),
        (x, x, {"metric": "dot"}, ValueError, "metric must be one of"),
    ):
        with pytest.raises(error, match="symmetric_loss: " + message):
            fastmeta.symmetric_loss(q, k, **options)

"""proto_loss with shares of all prototypes as targets: torch.nn.functional.cross_entropy with class probabilities, task by task."""

import pytest
import torch
import torch.nn.functional as F

import fastmeta
from harness.cases import PROTO, interpreted, randn
from harness.compare import check_against_reference, check_threads, values_and_grads
from harness.distance_cases import apart, temperature_for


def logits(q, c, t, bias, metric):
    return -apart(q, c, metric) / t + bias.unsqueeze(-2)


def drawn(metric, Q=19, N=7, D=5):
    """Query, prototypes, shares of any sum and sign, temperature, bias."""
    temperature = torch.tensor(temperature_for(metric, D)).double()
    return [randn(2, Q, D), randn(2, N, D), randn(2, Q, N), temperature, randn(2, N)]


def ours(**options):
    def fn(q, c, shares, t=1.0, bias=None):
        return fastmeta.proto_loss(q, c, shares, temperature=t, bias=bias, **options)

    return fn


def squares_of_gradients(fn, tensors):
    leaves = [x.detach().requires_grad_() for x in tensors]
    first = torch.autograd.grad(fn(*leaves).square().sum(), leaves, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)


@pytest.mark.parametrize("backend", [name for name in PROTO if not interpreted(name)], indirect=True)
@pytest.mark.parametrize(
    ("metric", "reduction", "smoothing"),
    [("euclidean", "mean", 0.0), ("sqeuclidean", "none", 0.2), ("cosine", "sum", 0.3)],
)
def test_is_cross_entropy(backend, metric, reduction, smoothing):
    options = {"metric": metric, "reduction": reduction, "label_smoothing": smoothing}

    def truth(q, c, shares, t, bias):
        z = logits(q, c, t, bias, metric)
        return torch.stack(
            [
                F.cross_entropy(*pair, label_smoothing=smoothing, reduction=reduction)
                for pair in zip(z, shares, strict=True)
            ]
        )

    tensors, fn = drawn(metric), ours(**options)
    torch.testing.assert_close(values_and_grads(fn, tensors), values_and_grads(truth, tensors))
    torch.testing.assert_close(squares_of_gradients(fn, tensors), squares_of_gradients(truth, tensors))
    one = [x[0] if x.ndim else x for x in tensors]
    torch.testing.assert_close(fn(*one), truth(*tensors)[0])


@pytest.mark.parametrize(
    ("backend", "metric", "dtype", "size"),
    [
        ("ext", "sqeuclidean", torch.float32, (35, 67, 65)),
        ("ext", "cosine", torch.float16, (19, 7, 5)),
        ("ext", "euclidean", torch.bfloat16, (19, 7, 5)),
        ("triton", "euclidean", torch.float32, (9, 5, 16)),
        ("triton", "sqeuclidean", torch.float16, (5, 3, 5)),
        ("triton", "cosine", torch.bfloat16, (5, 3, 5)),
    ],
)
def test_is_as_exact_as_the_reference(backend, metric, dtype, size):
    """With a prototype that does not count, prototypes and biases of all tasks too."""
    options = {"metric": metric, "label_smoothing": 0.2, "exclude": torch.randint(-1, size[1], (2, size[0]))}
    out = options["exclude"].unsqueeze(-1) == torch.arange(size[1])

    def moved(is_shared=False):
        found = [x.to(dtype) for x in drawn(metric, *size)]
        found[2] = found[2].softmax(-1).masked_fill(out, 0)
        return [x[0] if is_shared and i in (1, 4) else x for i, x in enumerate(found)]

    if interpreted(backend):
        reduction = {2: "none", 4: "sum"}[dtype.itemsize]
        return check_against_reference(ours(reduction=reduction, **options), moved(dtype == torch.float16), backend)
    for reduction, is_shared in (("mean", False), ("none", True)):
        check_against_reference(ours(reduction=reduction, **options), lambda s=is_shared: moved(s), backend)
    tensors = moved()
    check_threads(lambda: values_and_grads(ours(**options), tensors))


def test_one_hot_shares_are_labels():
    q, c = randn(2, 9, 5), randn(2, 4, 5)
    targets, exclude = torch.randint(0, 3, (2, 9)), torch.full((2, 9), 3)
    hot = F.one_hot(targets, 4).double()
    for options in ({}, {"label_smoothing": 0.1, "exclude": exclude, "reduction": "none"}):
        fns = [
            lambda q, c, y=y, o=options: fastmeta.proto_loss(q, c, y, return_accuracy=True, **o) for y in (hot, targets)
        ]
        loss, hits = fns[0](q, c)
        assert torch.equal(hits, fns[1](q, c)[1]) and 0 < hits.mean() < 1
        torch.testing.assert_close(loss, fns[1](q, c)[0])
        torch.testing.assert_close(*(values_and_grads(lambda *x, fn=fn: fn(*x)[0], [q, c]) for fn in fns))


@pytest.mark.parametrize("backend", PROTO, indirect=True)
def test_any_prototype_may_have_the_largest_share(backend):
    """The first and the last too: each query lies on its own."""
    x = torch.arange(5.0).unsqueeze(-1)
    _, hits = fastmeta.proto_loss(x, x, 0.1 + torch.eye(5), reduction="none", return_accuracy=True)
    assert hits.tolist() == [1] * 5


@pytest.mark.parametrize("backend", PROTO, indirect=True)
def test_of_equal_shares_the_first_and_what_does_not_count(backend):
    q, c = torch.zeros(3, 1), torch.tensor([[0.0], [0.0], [5.0]])
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, torch.nan, 1.0]])
    exclude = torch.tensor([2, -1, -1])
    leaves = [q.clone().requires_grad_(), shares.clone().requires_grad_()]
    loss, hits = fastmeta.proto_loss(leaves[0], c, leaves[1], exclude=exclude, reduction="none", return_accuracy=True)
    assert hits.tolist() == [1, 0, 0] and loss[2].isnan()
    of_shares = torch.autograd.grad(loss[:2].sum(), leaves[1])[0]
    assert of_shares[0, 2] == 0 and of_shares[0, 0] == pytest.approx(torch.tensor(2.0).log().item())
    empty = fastmeta.proto_loss(q[:0], c, shares[:0], return_accuracy=True)
    assert [x.item() for x in empty] == [0, 0]


@pytest.mark.gate
def test_transforms_compile_and_autocast():
    tensors, fn = drawn("cosine"), ours(metric="cosine", label_smoothing=0.1)
    truth = values_and_grads(fn, tensors)
    torch._dynamo.reset()
    compiled = torch.compile(fn, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(values_and_grads(compiled, tensors), truth)
    by_func = torch.func.grad(lambda *x: fn(*x).sum(), tuple(range(5)))(*tensors)
    torch.testing.assert_close([*by_func], truth[1:])
    shares = torch.stack([tensors[2], -tensors[2]])
    per_share = torch.func.vmap(torch.func.grad(lambda y: fn(*tensors[:2], y, *tensors[3:]).sum()))(shares)
    torch.testing.assert_close(per_share, truth[3].expand_as(shares))
    value, grads = fastmeta.value_and_grad(fastmeta.proto_loss, (2, 0))(
        *tensors[:3], metric="cosine", temperature=tensors[3], bias=tensors[4], label_smoothing=0.1
    )
    torch.testing.assert_close([value, *grads], [truth[0], truth[3], truth[1]])
    with torch.autocast("cpu", torch.bfloat16):
        assert fn(*(x.bfloat16() for x in tensors)).dtype == torch.float32
    assert fn(*(x.to("meta") for x in tensors)).shape == (2,)


@pytest.mark.cpu
@pytest.mark.parametrize("backend", PROTO, indirect=True)
def test_errors(backend):
    q, c, shares = torch.ones(4, 3), torch.ones(2, 3), torch.full((4, 2), 0.5)
    first, targets = torch.zeros(4, dtype=torch.int64), "targets of floating point must"
    for y, options, error, message in (
        (shares[:, 0], {}, ValueError, targets + r" have shape \[4, 2\], got \[4\]"),
        (shares.double(), {}, TypeError, "targets must have the dtype of query"),
        (shares, {"margin": 0.1}, ValueError, targets + " go without margin, target_distance and classes"),
        (shares, {"classes": first[:2]}, ValueError, targets + " go without margin, target_distance and classes"),
        (shares, {"target_distance": q[:, 0]}, ValueError, targets + " go without margin"),
        (
            shares,
            {"ignore_index": 0},
            ValueError,
            "ignore_index must be negative with targets of floating point, got 0",
        ),
        (shares, {"exclude": first}, ValueError, "targets must be 0 at what is excluded, got 0.5"),
        (shares, {"exclude": first + 2}, ValueError, r"exclude must be in \[0, 2\) or -1, got 2"),
    ):
        with pytest.raises(error, match="proto_loss: " + message):
            fastmeta.proto_loss(q, c, y, **options)

"""proto_loss with biases, classes of several prototypes, smoothed labels and soft targets in the Triton kernels: many columns, both ways;
several programs to one result; memory; what is out of range."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastmeta
from harness.cases import randn
from harness.compare import check_against_reference, values_and_grads
from harness.distance_cases import temperature_for

pytest.importorskip("triton")


@pytest.fixture
def small_products(monkeypatch):
    from fastmeta.kernels import _products, _tiles

    monkeypatch.setattr(_tiles, "PRODUCTS", 0)
    monkeypatch.setattr(_tiles, "WIDE", 64)
    monkeypatch.setattr(_products, "CHUNK", 1)


def options_of(kind, lead, Q, N):
    """Among the targets one that is ignored; of the classes none is alone with what is excluded. Soft targets are a tensor."""
    targets, exclude = torch.arange(Q).expand(*lead, Q) % (3 if kind == "classes" else N), torch.arange(Q) + 1
    exclude = torch.where(torch.arange(Q) % 3 == 0, -1, exclude % N).expand(*lead, Q)
    targets = torch.where(torch.arange(Q) == 1, -100, targets)
    chosen = {"targets": targets, "exclude": exclude, "label_smoothing": 0.2}
    if kind == "soft":
        return chosen | {"targets": None}
    return chosen | ({"classes": torch.arange(N) % 3} if kind == "classes" else {"margin": 0.3})


def of(options, metric):
    def fn(q, c, bias, t, given=None):
        more = {"targets": given} if options["targets"] is None else {"target_distance": given}
        return fastmeta.proto_loss(q, c, metric=metric, bias=bias, temperature=t, **options | more)

    return fn


def tensors_of(kind, lead, Q, N, D, dtype, metric, shared=False):
    own = () if shared else lead
    found = [randn(*lead, Q, D), randn(*own, N, D), randn(*own, N), torch.tensor(temperature_for(metric, D)).double()]
    found += [randn(*lead, Q).square()] if kind == "given" else [shares_of(lead, Q, N)] if kind == "soft" else []
    return [x.to(dtype) for x in found]


def shares_of(lead, Q, N):
    """Of any sign, in rows that do not lie one after the other; 0 of what is excluded."""
    out = options_of("soft", lead, Q, N)["exclude"].unsqueeze(-1) == torch.arange(N)
    return randn(*lead, N, Q).mT.masked_fill(out, 0)


@pytest.mark.parametrize(
    ("kind", "metric", "dtype", "shared"),
    [
        ("classes", "euclidean", torch.float32, True),
        ("given", "cosine", torch.bfloat16, False),
        ("soft", "cosine", torch.float32, True),
    ],
)
def test_many_columns_by_differences(kind, metric, dtype, shared):
    """Two blocks; tasks that share prototypes, biases and classes."""
    fn = of(options_of(kind, (2,), 5, 37), metric)
    check_against_reference(fn, tensors_of(kind, (2,), 5, 37, 17, dtype, metric, shared), "triton")


@pytest.mark.parametrize(
    ("kind", "metric", "dtype"),
    [
        ("classes", "cosine", torch.float32),
        ("given", "sqeuclidean", torch.float16),
        ("soft", "euclidean", torch.float32),
        pytest.param("soft", "cosine", torch.float16, marks=pytest.mark.gate),
    ],
)
def test_many_columns_by_products(kind, metric, dtype, small_products):
    """Two parts of the queries, two blocks of the columns; one pair near. With soft targets tasks that share prototypes."""
    T, Q, N, D = 1 + (kind == "soft"), 20 // (1 + (kind == "soft")), 70, 16
    tensors = tensors_of(kind, (T,), Q, N, D, dtype, metric, kind == "soft")
    tensors[0][0, 0] = tensors[1][..., 5, :].flatten() + 1e-3
    check_against_reference(of(options_of(kind, (T,), Q, N), metric), tensors, "triton")


def test_programs_that_share_the_gradient_of_a_bias():
    """Also where it is the only one that is asked for."""
    options = options_of("classes", (), 260, 6) | {"exclude": None}
    q, c, bias, t = tensors_of("classes", (), 260, 6, 16, torch.float32, "euclidean")
    check_against_reference(of(options, "euclidean"), [q, c, bias, t], "triton")
    alone = []
    for backend in ("triton", "reference"):
        with fastmeta.backend(backend):
            alone.append(values_and_grads(lambda b: of(options, "euclidean")(q, c, b, t), [bias]))
    torch.testing.assert_close(*alone)


@pytest.mark.gate
@pytest.mark.parametrize("kind", ["classes", "soft"])
def test_backward_makes_no_matrix(kind, small_products):
    """[Q, N] would be twice what query, prototypes and bias hold; what torch makes is larger for the gradient of soft targets alone."""
    made = []

    class Made(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made.append(func(*args, **(kwargs or {})))
            return made[-1]

    tensors = [x.contiguous() for x in tensors_of(kind, (), 64, 64, 16, torch.float32, "sqeuclidean")]
    tensors = [x.requires_grad_() for x in tensors]
    with fastmeta.backend("triton"):
        loss = of(options_of(kind, (), 64, 64), "sqeuclidean")(*tensors)
        with Made():
            torch.autograd.grad(loss, tensors)
    most = sum(x.nbytes for x in tensors[:4])
    large = {x.data_ptr() for x in made if isinstance(x, torch.Tensor) and x.nbytes > most}
    large -= {x.data_ptr() for x in tensors}
    assert len(made) > 9 and most < 64 * 64 * 4 and len(large) == (kind == "soft")


@pytest.mark.parametrize("columns", [5, 37])
def test_a_class_without_a_prototype_and_no_queries(columns):
    """As on CUDA, where the op does not look: NaN for the task, gradients too; of an ignored query 0."""
    from fastmeta.kernels.proto_loss import proto_loss_bwd, proto_loss_fwd

    q, c, bias, _ = tensors_of("classes", (2,), 3, columns, 4, torch.float32, "euclidean")
    classes, targets = torch.arange(columns).expand(2, columns) % 3, torch.tensor([[0, 1, 9], [0, -100, 2]])
    needs = (True, True, False, False, False, False, True, False)
    for queries in (3, 0):
        args = q[:, :queries], c, targets[:, :queries], 0.5, None, None, bias, classes
        static = "euclidean", -100, "sum", 0.0, 0.2, True
        (losses, hits), saved = proto_loss_fwd(*args, *static, needs)
        grads = proto_loss_bwd((torch.ones_like(losses), hits), saved, *args, *static, needs)
        if queries:
            assert losses[0].isnan() and losses[1].isfinite() and hits.isfinite().all()
            assert all(grad[0].isnan().any() and grad[1].isfinite().all() for grad in grads)
        else:
            assert not any(x.any() for x in (losses, hits, *grads[1:]))

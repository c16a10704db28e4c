"""The distance ops by products, beyond test_triton_distance.py: what torch multiplies, what is in memory, near pairs."""

import pytest
import torch

import fastmeta
from harness.cases import randn
from harness.compare import check_against_reference, values_and_grads
from harness.distance_cases import loss, matching, temperature_for

pytest.importorskip("triton")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def few_in_a_part(monkeypatch):
    from fastmeta.kernels import _products, _tiles

    monkeypatch.setattr(_tiles, "PRODUCTS", 0)
    monkeypatch.setattr(_tiles, "WIDE", 64)
    monkeypatch.setattr(_products, "CHUNK", 1)


@pytest.fixture
def multiplied(monkeypatch):
    """Every product: its factors and its result."""
    from fastmeta.kernels import _products, _products_bwd

    found, multiply = [], _products.multiply

    def noted(a, b, out, **options):
        found.append((a, b, out))
        multiply(a, b, out, **options)

    for module in (_products, _products_bwd):
        monkeypatch.setattr(module, "multiply", noted)
    return found


def run(rows, columns, features, dtype=torch.float32):
    fn = loss(torch.arange(rows) % columns)
    with fastmeta.backend("triton"):
        values_and_grads(fn, [randn(rows, features, dtype=dtype), randn(columns, features, dtype=dtype)])


@pytest.mark.parametrize(("chunk", "products"), [(1 << 20, 3), (1, 4)])
def test_products_are_made_once(chunk, products, monkeypatch, multiplied):
    """Forward and backward: three, where they are kept; else backward makes them again. Eight more features hold the sums of weights."""
    from fastmeta.kernels import _products

    monkeypatch.setattr(_products, "CHUNK", chunk)
    rows, columns, features = 32, 48, 16
    run(rows, columns, features)
    assert sum(a.numel() * b.shape[2] for a, b, _ in multiplied) == rows * columns * (products * features + 2 * 8)


def test_memory_is_that_of_the_inputs(multiplied):
    """[Q, N] would be more than twice the largest tensor that is multiplied or made."""
    run(64, 128, 16)
    assert len(multiplied) == 4 * 4
    assert max(x.untyped_storage().nbytes() for of in multiplied for x in of) <= (64 + 128) * 16 * 4


def test_a_contrastive_batch_is_cut_into_parts():
    """65,536 x 65,536 x 512: no part holds more than the inputs do, and 64 of them hold all queries."""
    from fastmeta.kernels import _products

    x = torch.empty(1, 65536, 512, device="meta")
    parts = _products.parts(x, x, 65536)
    assert len(parts) == 64 and sum(part.rows for part in parts) == 65536
    assert _products.memory_of(x, parts, 65536).nbytes == 2 * x.nbytes


@pytest.mark.parametrize("dtype", DTYPES)
def test_halves_are_multiplied_as_they_are(dtype, multiplied):
    """Of numbers without an offset the operands are the numbers themselves."""
    query, prototypes = randn(32, 16, dtype=dtype), randn(40, 16, dtype=dtype)
    with fastmeta.backend("triton"):
        fastmeta.proto_loss(query, prototypes, torch.arange(32))
    a, b, out = multiplied[0]
    assert a.dtype == b.dtype == dtype and out.dtype == torch.float32
    if dtype != torch.float32:
        assert torch.equal(a[0], query[:16]) and torch.equal(b[0, :, :40].mT, prototypes)


def test_weights_of_soft_targets_stay_in_the_range_of_halves(multiplied):
    """Whatever the shares sum to: else their pairs would be added one by one, as those that are near."""
    query, prototypes = randn(16, 16, dtype=torch.float16), randn(40, 16, dtype=torch.float16)
    for size in (1.0, 1024.0):
        shares = size * torch.full((16, 40), 0.25).half()
        with fastmeta.backend("triton"):
            values_and_grads(lambda q, y=shares: fastmeta.proto_loss(q, prototypes, y), [query])
    small, large = multiplied[2][0], multiplied[5][0]
    torch.testing.assert_close(small, large)
    assert 16 < large.abs().max() < 4096


@pytest.mark.parametrize("allow_tf32", [True, False], indirect=True)
def test_float32_is_rounded_only_where_torch_rounds_it(allow_tf32, multiplied):
    """Every factor, the weights of the gradients too, has the bits that a tensor core takes: the norms are of the same numbers."""
    run(20, 40, 16)
    factors = [x for a, b, _ in multiplied for x in (a, b)]
    assert len(factors) == 2 * 4
    rounded = [bool((x.contiguous().view(torch.int32) & 0x1FFF == 0).all()) for x in factors]
    assert all(rounded) if allow_tf32 else not any(rounded)


@pytest.mark.parametrize("metric", ["euclidean", pytest.param("sqeuclidean", marks=pytest.mark.gate)])
def test_near_pairs_in_every_part(metric):
    """A cluster far from the mean, duplicates, and queries that lie on prototypes: to be added one by one on both sides."""
    query, prototypes = randn(24, 16, dtype=torch.float32), randn(70, 16, dtype=torch.float32)
    prototypes[62:66] = 30 + 0.01 * prototypes[62:66]  # in two blocks
    query[::4] = prototypes[59:65] + 1e-3 * query[::4]
    check_against_reference(
        loss(torch.arange(24), metric=metric, temperature=temperature_for(metric, 16)), [query, prototypes], "triton"
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_halves_far_from_the_origin_and_with_small_cotangents(dtype):
    """An offset of many deviations is taken off; weights far below float16's range are scaled into it."""
    query, prototypes = 20 + randn(12, 16, dtype=dtype), 20 + randn(40, 16, dtype=dtype)
    fn = loss(torch.arange(12))
    check_against_reference(lambda q, c: fn(q, c) * 1e-2, [query, prototypes], "triton")
    with fastmeta.backend("triton"):
        (large, small) = (values_and_grads(fn, [query, prototypes], [torch.tensor(x)])[1] for x in (1.0, 2.0**-12))
    assert (large.float() - small.float() * 4096).abs().max() <= 0.02 * large.abs().max()


def test_backward_twice_gives_the_same_bits(monkeypatch):
    """What forward keeps is read, not overwritten."""
    from fastmeta.kernels import _products

    monkeypatch.setattr(_products, "CHUNK", 1 << 20)
    query, prototypes = randn(36, 16).float().requires_grad_(), randn(70, 16).float()
    with torch.no_grad():
        query[0] = prototypes[0] + 1e-3
    with fastmeta.backend("triton"):
        out = fastmeta.proto_loss(query, prototypes, torch.arange(36))
        first, second = (torch.autograd.grad(out, query, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_tasks_in_parts_and_tasks_that_share_prototypes():
    """Several tasks to a part, several parts to a task; one product for tasks that share the columns."""
    targets = torch.arange(12)
    targets[3] = -100
    for reduction, lead in (("mean", (3,)), ("sum", ()), ("none", (3,))):
        tensors = [randn(3, 12, 16, dtype=torch.float32), randn(*lead, 40, 16, dtype=torch.float32)]
        tensors[0][..., :2, :] = tensors[1][..., 2:4, :] + 1e-3
        check_against_reference(loss(targets.expand(3, 12), reduction=reduction), tensors, "triton")
    labels = (torch.arange(40) % 7).expand(3, 40)
    check_against_reference(
        matching(labels, 7, "euclidean", 1.0),
        [randn(3, 12, 16, dtype=torch.float32), randn(3, 40, 16, dtype=torch.float32)],
        "triton",
    )

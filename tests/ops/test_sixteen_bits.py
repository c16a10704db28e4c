"""float16 and bfloat16 on a CPU: the native kernels read and write them as they are. Values and errors of every op in these dtypes are
tested where the op is."""

import pytest
import torch

import fastmeta
from fastmeta._dispatch import FUSED, LOW_PRECISION, NARROW
from harness.cases import case
from harness.compare import values_and_grads

pytestmark = pytest.mark.cpu

dtypes = pytest.mark.parametrize("dtype", LOW_PRECISION)
ops = pytest.mark.parametrize("op", NARROW)


def values(fn, tensors):
    return fastmeta._dispatch.tensors_of(fn(*tensors))


def every_number(dtype):
    return torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)


@pytest.mark.parametrize(("dtype", "flush"), [(torch.float16, False), (torch.float16, True), (torch.bfloat16, False)])
def test_every_number_is_read_and_written(dtype, flush):
    """0 - (-1) x = x: also subnormal ones of float16 on a processor that flushes those of float32."""
    x = every_number(dtype)
    torch.set_flush_denormal(flush)
    try:
        (found,) = fastmeta.sgd_step([torch.zeros_like(x)], [x], -1.0)
    finally:
        torch.set_flush_denormal(False)
    torch.testing.assert_close(found + 0.0, x + 0.0, rtol=0, atol=0, equal_nan=True)


@dtypes
def test_numbers_are_rounded_as_torch_rounds_them(dtype):
    """x - 2^-k y is exact in float32, or rounded there once; also where the result is subnormal, a tie, or too large."""
    x = every_number(dtype)
    y = x[torch.randperm(len(x))]
    for rate in (2.0**-k for k in range(0, 12, 3)):
        (found,) = fastmeta.sgd_step([x], [y], rate)
        torch.testing.assert_close(found, (x.float() - rate * y.float()).to(dtype), rtol=0, atol=0, equal_nan=True)


@dtypes
@ops
def test_nothing_is_widened_and_results_are_rounded_once(op, dtype, monkeypatch):
    c = case(op, dtype=dtype)
    run = values if op in ("conv_hvp", "mlp_hvp") else values_and_grads  # whose derivatives are the reference's
    wide = run(c.fn, [t.float() for t in c.tensors])
    found = []

    def pack(x):
        found.append(x.dtype)
        return x

    monkeypatch.setattr(torch.Tensor, "float", lambda _: pytest.fail("a whole tensor is widened"))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        ours = run(c.fn, c.tensors)
    assert torch.float32 not in found or op in FUSED or op == "conv_forward"  # which save gradients, activations
    for x, y in zip(ours, wide, strict=True):
        torch.testing.assert_close(x, y.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


@dtypes
@ops
def test_second_order_is_found_in_float32(op, dtype):
    c = case(op, dtype=dtype)

    def of_gradients(*tensors):
        loss = (
            sum(y.float().square().sum() for y in fastmeta._dispatch.tensors_of(c.fn(*tensors))) / 64
        )  # no float16 overflows
        grads = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True, materialize_grads=True)
        return sum(g.float().square().sum() for g in grads)

    ours = values_and_grads(of_gradients, c.tensors)
    wide = values_and_grads(of_gradients, [t.float() for t in c.tensors])
    for x, y in zip(ours, wide, strict=True):
        scale = 30 * torch.finfo(dtype).eps
        torch.testing.assert_close(x.to(dtype), y.to(dtype), rtol=scale, atol=scale * float(y.abs().max()))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_loss_scale_saves_gradients_that_float16_would_lose(reduction, shared):
    """A query's gradient of a mean over 2,000 queries, each nearly sure of its class, is below the least float16."""
    centres = 4 * torch.eye(5, 8)
    labels = torch.arange(2000).remainder(5).expand(2, 2000)
    query = (centres[labels] + 0.1 * torch.randn(2, 2000, 8)).half().requires_grad_()
    prototypes = (centres if shared else centres.expand(2, 5, 8)).half().requires_grad_()
    labels = labels.clone()
    labels[1, :500] = -100

    def gradients(q, c, scale):
        loss = fastmeta.proto_loss(q, c, labels, metric="sqeuclidean", reduction=reduction).sum()
        return torch.autograd.grad(loss, (q, c), torch.tensor(scale, dtype=loss.dtype))

    scale = 2.0**15
    ours = gradients(query, prototypes, scale)
    wide = gradients(query.detach().float().requires_grad_(), prototypes.detach().float().requires_grad_(), scale)
    if reduction == "mean":
        assert (wide[0] / scale).abs().max() < 2.0**-14
    for x, y in zip(ours, wide, strict=True):
        torch.testing.assert_close(x, y.half(), rtol=2e-3, atol=2.0**-24)
    value, found = fastmeta.value_and_grad(fastmeta.proto_loss, (0, 1))(
        query.detach(), prototypes.detach(), labels, metric="sqeuclidean", reduction=reduction
    )
    assert value.dtype == torch.float16 and [x.dtype for x in found] == [torch.float16] * 2


@dtypes
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize(
    ("T", "Q", "N", "D"), [(2, 37, 5, 70), (1, 600, 70, 640), (3, 0, 4, 5), (2, 3, 4, 0), (0, 3, 4, 5)]
)
def test_blocks_of_every_kind(metric, T, Q, N, D, dtype):
    """Few and many prototypes, products, several threads, and sizes of zero."""
    query, prototypes = torch.randn(T, Q, D).to(dtype), torch.randn(T, N, D).to(dtype)
    targets, labels = torch.randint(N, (T, Q)), torch.arange(N).remainder(3).expand(T, N)
    tensors = [query, prototypes, torch.tensor(2.0, dtype=dtype)]
    for fn in (
        lambda q, c, tau: fastmeta.proto_log_softmax(q, c, metric=metric, temperature=tau),
        lambda q, c, tau: fastmeta.proto_loss(q, c, targets, metric=metric, temperature=tau),
        lambda q, c, tau: fastmeta.matching_log_probs(q, c, labels, 3, metric=metric, temperature=tau),
        lambda q, c, tau: fastmeta.prototypes(c, labels, 3),
    ):
        ours, wide = values_and_grads(fn, tensors), values_and_grads(fn, [t.float() for t in tensors])
        for x, y in zip(ours, wide, strict=True):
            scale, largest = 2 * torch.finfo(dtype).eps, float(y.abs().max()) if y.numel() else 0.0
            torch.testing.assert_close(x, y.to(dtype), rtol=scale, atol=2.0**-24 + scale * largest)


@dtypes
def test_zero_vectors_and_infinite_ones_as_in_float32(dtype):
    query, prototypes = torch.randn(4, 6).to(dtype), torch.randn(3, 6).to(dtype)
    query[1], prototypes[2], query[2, 3] = 0, 0, float("inf")

    def fn(q, c):
        return fastmeta.proto_log_softmax(q, c, metric="cosine")

    ours, wide = values_and_grads(fn, [query, prototypes]), values_and_grads(fn, [query.float(), prototypes.float()])
    for x, y in zip(ours, wide, strict=True):
        torch.testing.assert_close(x, y.to(dtype), rtol=2e-2, atol=2e-2, equal_nan=True)


@dtypes
def test_a_rate_that_is_not_finite_is_refused(dtype):
    w = torch.ones(3, dtype=dtype)
    for rate in (torch.tensor(float("nan")), torch.tensor([1.0, float("inf"), 0.0])):
        with pytest.raises(ValueError, match="must be finite, got (nan|inf)"):
            fastmeta.sgd_step([w], [w], [rate.to(dtype)])


@dtypes
@pytest.mark.parametrize(("lead", "D"), [((), 6), ((37,), 5000)])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_networks_widen_some_tasks_at_a_time(dtype, lead, D, shared, loss):
    """More tasks than are widened at once; parameters of each task and of all, rates of each element and step, example weights."""
    W, b = (torch.randn(*(() if shared else lead), *core) / D**0.5 for core in ((3, D), (3,)))
    x, query = torch.randn(2, *lead, 4, D).to(dtype)
    classes, values = torch.randint(3, (*lead, 4)), torch.randn(*lead, 4, 3).to(dtype)
    rates, weights = torch.rand(2, 3, D) / D, torch.rand(*lead, 4)

    def fn(W, b, rates, x, query, weights, values):
        y = values if loss == "mse" else classes
        adapted = fastmeta.mlp_adapt([W, b], [rates, rates[..., 0]], x, y, weights=weights, steps=2, loss=loss)
        of_steps = fastmeta.mlp_meta_loss(
            [W, b], None, torch.stack([x, query]), torch.stack([y, y]), query, y, steps=2, loss=loss, batch_per_step=True,
            optimiser=fastmeta.SGD([rates, rates[..., 0]], 0.5),
        )  # fmt: skip
        return [*adapted, of_steps, fastmeta.mlp_meta_loss([W, b], 0.1 / D, x, y, query, y, steps=2, loss=loss)]

    tensors = [t.to(dtype) for t in (W, b, rates, x, query, weights, values)]
    ours, wide = values_and_grads(fn, tensors), values_and_grads(fn, [t.float() for t in tensors])
    for found, expected in zip(ours, wide, strict=True):
        assert found.dtype == dtype
        scale = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            found, expected.to(dtype), rtol=scale, atol=2.0**-24 + scale * float(expected.abs().max())
        )


def test_a_loss_scale_saves_the_gradients_of_networks():
    """Meta-gradients that float16 can hold with a digit or none are kept in float32 until the cotangent has come."""
    W, x = torch.randn(3, 6).half(), (torch.randn(50, 5, 6) / 1024).half()
    y = torch.zeros(50, 5, 3).half()

    def gradient(W, x, y, scale):
        loss = fastmeta.mlp_meta_loss([W.requires_grad_(), None], 0.5, x, y, x, y, steps=1, loss="mse")
        return torch.autograd.grad(loss.mean() * scale, W)[0]

    ours, wide = gradient(W, x, y, 2.0**13), gradient(W.float(), x.float(), y.float(), 2.0**13)
    assert wide.abs().max() < 2.0**13 * 2.0**-18
    torch.testing.assert_close(ours, wide.half(), rtol=1e-2, atol=2.0**-24)

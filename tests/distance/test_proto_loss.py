import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import fastmeta
from harness.cases import KERNELS, PROTO, interpreted, randn
from harness.compare import check_against_reference, check_threads, values_and_grads
from harness.distance_cases import METRICS, SIZES, any_shape, drawn, loss, metrics, sizes_and_dtypes, temperature_for

REDUCTIONS = ("mean", "sum", "none")


def of_targets(metric, lead, Q, N, D, reduction="mean"):
    targets = torch.randint(0, N, (*lead, Q))
    targets[torch.rand(*lead, Q) < 0.2] = -100
    return loss(targets, metric=metric, temperature=temperature_for(metric, D), reduction=reduction)


test_any_shape = any_shape(of_targets)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_equals_cross_entropy(reduction):
    """The negative distances as logits of PyTorch's own cross-entropy, which reduces over one task as this op does."""
    q, c, targets = randn(6, 3), randn(4, 3), torch.tensor([0, 3, -100, 1, 2, 2])
    for metric, power in (("euclidean", 1), ("sqeuclidean", 2)):
        logits = -(torch.cdist(q, c) ** power) / 0.5
        ours = fastmeta.proto_loss(q, c, targets, metric=metric, temperature=0.5, reduction=reduction)
        torch.testing.assert_close(ours, F.cross_entropy(logits, targets, reduction=reduction))


@sizes_and_dtypes
def test_matches_reference(backend, metric, size, dtype):
    """In the slow interpreter each metric meets each reduction, and each size does."""
    reductions = REDUCTIONS if dtype == torch.float32 else ("mean",)
    if interpreted(backend) and dtype == torch.float32:
        turn = METRICS.index(metric) + SIZES[backend].index(size)
        reductions = (REDUCTIONS[turn % 3],)
    for reduction in reductions:
        check_against_reference(of_targets(metric, *size, reduction), drawn(*size, dtype), backend)


def replaced(metric, lead, Q, N, D, reduction):
    """Queries of which most have a prototype that does not count; a margin; half of them with the target's distance given."""
    targets = torch.randint(0, N, (*lead, Q))
    exclude = (targets + torch.randint(1, N, (*lead, Q))) % N
    targets[..., 0], exclude[..., 1] = -100, -1
    options = {"exclude": exclude, "margin": 0.3, "metric": metric, "temperature": temperature_for(metric, D)}

    def fn(q, c, given):
        plain = fastmeta.proto_loss(q, c, targets, reduction=reduction, **options)
        return plain, fastmeta.proto_loss(q, c, targets, reduction=reduction, target_distance=given, **options)

    return fn


@metrics
@pytest.mark.parametrize(
    ("backend", "size", "dtype", "reduction"),
    [
        (backend, size, dtype, reduction)
        for backend in KERNELS
        for size, dtype, reduction in (
            (((2,), 7, 5, 3), torch.float64, "mean"),
            (((), 17, 67, 65), torch.float32, "none") if backend == "ext" else (((), 3, 33, 5), torch.float64, "none"),
            (((2,), 2, 3, 4), torch.float16, "mean") if backend == "ext" else (((2,), 7, 5, 3), torch.float16, "none"),
        )
    ],
)
def test_what_does_not_count_a_margin_and_distances_given(backend, metric, size, dtype, reduction):
    lead, Q, N, D = size
    draw = lambda: [*drawn(*size, dtype), randn(*lead, Q, dtype=dtype).square()]  # noqa: E731
    tensors = draw() if dtype == torch.float64 or interpreted(backend) else draw
    check_against_reference(replaced(metric, lead, Q, N, D, reduction), tensors, backend)


def test_excluded_and_margin_are_those_of_a_cross_entropy():
    """Of one class and all of it excluded too, where the target is ignored."""
    q, c, targets = randn(6, 3), randn(4, 3), torch.tensor([0, 3, -100, 1, 2, 2])
    exclude, given = torch.tensor([1, -1, 0, 3, 0, 3]), randn(6)
    logits = -torch.cdist(q, c) / 0.5
    logits[range(6), targets.clamp(0)] = -given / 0.5 - 0.2
    logits[exclude >= 0, exclude[exclude >= 0]] = -torch.inf
    options = {"temperature": 0.5, "exclude": exclude, "margin": 0.2, "target_distance": given}
    torch.testing.assert_close(fastmeta.proto_loss(q, c, targets, **options), F.cross_entropy(logits, targets))
    for ignored in (-100, -1, 0):
        one, out = randn(1, 3).requires_grad_(), torch.tensor([0])
        loss = fastmeta.proto_loss(one, c[:1], torch.tensor([ignored]), exclude=out, ignore_index=ignored)
        (first,) = torch.autograd.grad(loss, one, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), one)
        assert loss == 0 and first.count_nonzero() == second.count_nonzero() == 0


@pytest.mark.parametrize("backend", KERNELS)
def test_ignored_shared_strided_and_empty(backend):
    targets = torch.tensor([[0, -100, 1], [-100, -100, -100]])
    check_against_reference(loss(targets), [randn(2, 3, 4), randn(2, 4)], backend)
    check_against_reference(loss(targets, reduction="none"), [randn(2, 3, 4), randn(2, 2, 4)], backend)
    check_against_reference(loss(targets + 101, ignore_index=1), [randn(2, 3, 4), randn(105, 4)], backend)
    check_against_reference(lambda q, c: loss(targets[0])(q.mT, c[::2]), [randn(4, 3), randn(4, 4)], backend)
    check_against_reference(loss(targets[:, :0]), [randn(2, 0, 4), randn(2, 4)], backend)
    with fastmeta.backend(backend):
        assert fastmeta.proto_loss(torch.ones(2, 3, 4), torch.ones(2, 4), targets)[1] == 0


MEMORY = """
import torch, fastmeta

def status(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024

def both_ways(Q, N, D):
    tensors = torch.randn(1, Q, D, requires_grad=True), torch.randn(1, N, D, requires_grad=True)
    before = status("VmRSS")
    torch.autograd.grad(fastmeta.proto_loss(*tensors, torch.zeros(1, Q, dtype=torch.int64)).sum(), tensors)
    return status("VmHWM") - before - sum(t.nbytes for t in tensors)

torch.set_num_threads(2)  # their scratch grows with N
with fastmeta.backend("ext"):
    both_ways(4, 3, 2)
    print(both_ways(1024, 100_000, 8))
"""


@pytest.mark.cpu
def test_memory_does_not_grow_with_pairs():
    """1e5 prototypes, in a process of its own: less than a quarter of the [Q, N] matrix beside inputs and gradients."""
    found = subprocess.run([sys.executable, "-c", MEMORY], stdout=subprocess.PIPE, text=True, check=True)
    assert int(found.stdout) < 1024 * 100_000 * 4 / 4


@pytest.mark.cpu
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_threads_do_not_change_a_bit(reduction):
    q, c = randn(4, 300, 64, dtype=torch.float32), randn(4, 20, 64, dtype=torch.float32)
    targets = torch.randint(0, 20, (4, 300))
    check_threads(lambda: values_and_grads(loss(targets, reduction=reduction), [q, c]))


@pytest.mark.cpu
def test_errors():
    q, c, targets = torch.ones(4, 3), torch.ones(2, 3), torch.tensor([0, 1, 0, 1])
    for given, options, message in (
        (targets + 1, {}, r"targets must be in \[0, 2\) or ignore_index=-100, got 2"),
        (targets[:3], {}, r"targets must have shape \[4\], got \[3\]"),
        (targets, {"reduction": "max"}, "reduction must be one of 'mean', 'sum', 'none', got 'max'"),
    ):
        with pytest.raises(ValueError, match="proto_loss: " + message):
            fastmeta.proto_loss(q, c, given, **options)
    for options, message in (
        ({"exclude": targets}, "exclude must not be the target, got 0 for both"),
        ({"exclude": 1 - targets + 1}, r"exclude must be in \[0, 2\) or -1, got 2"),
        ({"exclude": targets[:3]}, r"exclude must have shape \[4\], got \[3\]"),
        ({"margin": float("nan")}, "margin must be finite, got nan"),
        ({"target_distance": q}, r"target_distance must have shape \[4\], got \[4, 3\]"),
    ):
        with pytest.raises(ValueError, match="proto_loss: " + message):
            fastmeta.proto_loss(q, c, targets, **options)
    with pytest.raises(TypeError, match="proto_loss: targets must be int64 class indices, got torch.int32"):
        fastmeta.proto_loss(q, c, targets.int())


@pytest.mark.parametrize("backend", PROTO, indirect=True)
def test_a_learned_temperature_may_have_any_shape_of_one_element(backend):
    q, c, targets = randn(2, 4, 3), randn(2, 3, 3), torch.randint(0, 3, (2, 4))
    labels = torch.arange(3).expand(2, 3)
    ops = (
        lambda t: fastmeta.proto_loss(q, c, targets, temperature=t),
        lambda t: fastmeta.proto_log_softmax(q, c, temperature=t)[..., 0],
        lambda t: fastmeta.matching_log_probs(q, c, labels, 3, temperature=t)[..., 0],
    )
    for f in ops:
        grads = []
        for shape in ((), (1,), (1, 1)):
            temperature = torch.full(shape, 2.0, dtype=q.dtype, requires_grad=True)
            f(temperature).sum().backward()
            assert temperature.grad.shape == shape and temperature.grad.count_nonzero()
            grads.append(temperature.grad.flatten())
        assert torch.equal(grads[0], grads[1][0:1]) and torch.equal(grads[0], grads[2])


@pytest.mark.parametrize("backend", PROTO, indirect=True)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize(("reduction", "excluded"), [("mean", False), ("none", False), ("none", True)])
def test_a_target_that_may_not_be_looked_at_gives_nan_and_nan_gradients_if_it_is_out_of_range(
    backend, metric, reduction, excluded
):
    q, c = randn(2, 4, 3), randn(2, 3, 3)
    targets = torch.tensor([[0, 1, 2, -100], [2, 3, 0, -1]])
    if excluded:  # a target that does not count
        exclude, targets[1] = torch.tensor([[1, 0, -1, 0], [1, 0, 2, 2]]), torch.tensor([2, 0, 0, 2])
    else:
        exclude = None

    def value(q, c):
        losses = fastmeta.proto_loss(q, c, targets, metric=metric, reduction=reduction, exclude=exclude)
        return losses.sum(), losses

    (dq, dc), losses = torch.func.grad(value, (0, 1), has_aux=True)(q, c)
    assert losses.isnan().tolist() == (
        [False, True] if reduction == "mean" else [[False] * 4, [False, True, False, True]]
    )
    assert dq.isnan().all(-1).tolist() == dq.isnan().any(-1).tolist() == [[False] * 4, [False, True, False, True]]
    assert dc.isnan().flatten(1).all(-1).tolist() == dc.isnan().flatten(1).any(-1).tolist() == [False, True]

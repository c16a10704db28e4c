"""scale_diag and scale_tril against the formula of the distance, in float64; float32 near it; no gradient of a kernel's own inputs."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fastmeta
from harness.cases import randn

LABELS, TARGETS = torch.tensor([2, 0, 1, 0, 2]), torch.tensor([[0, 2, -100, 1], [1, 1, 4, 3]])


def loss(q, c, **options):
    return fastmeta.proto_loss(q, c, TARGETS, **options)


def matching(q, c, **options):
    return fastmeta.matching_log_probs(q, c, LABELS.expand(*c.shape[:-2], 5), 3, **options)


def distances(q, c, metric, L):
    """(q - c)' L L' (q - c), or the cosine's, by the matrix M = L L'."""
    M = (L @ L.mT).unsqueeze(-3)
    if metric == "cosine":
        q, c = q @ L, c @ L
        return 1 - torch.nn.functional.cosine_similarity(q.unsqueeze(-2), c.unsqueeze(-3), dim=-1)
    apart = q.unsqueeze(-2) - c.unsqueeze(-3)
    square = ((apart @ M) * apart).sum(-1)
    return square.sqrt() if metric == "euclidean" else square


def scales(lead=(2,)):
    diag, full = randn(*lead, 3), randn(*lead, 3, 3)
    return [({"scale_diag": diag}, diag.diag_embed()), ({"scale_tril": full}, full.tril())]


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("lead", [(), (2,)])
def test_equals_the_formula_of_the_distance(metric, lead):
    """Of one scale for all tasks, or one each, which a query of all tasks meets too."""
    q, c = randn(2, 4, 3), randn(2, 5, 3)
    for options, L in scales(lead):
        d = distances(q, c, metric, L)
        log_p = (-d / 0.7).log_softmax(-1)
        options |= {"metric": metric, "temperature": 0.7}
        torch.testing.assert_close(fastmeta.proto_log_softmax(q, c, **options), log_p)
        expected = torch.stack([torch.nn.functional.nll_loss(*task) for task in zip(log_p, TARGETS, strict=True)])
        torch.testing.assert_close(loss(q, c, **options), expected)
        member = torch.nn.functional.one_hot(LABELS, 3).double()
        torch.testing.assert_close(matching(q, c, **options), (log_p.exp() @ member).log())
        shared = fastmeta.proto_log_softmax(q[0], c, **options)
        torch.testing.assert_close(shared, (-distances(q[:1], c, metric, L) / 0.7).log_softmax(-1))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_gradients_of_both_orders_and_under_transforms(metric):
    for options, _ in scales():
        ((name, scale),) = options.items()
        fn = lambda q, c, s: loss(q, c, metric=metric, **{name: s})  # noqa: B023, E731
        tensors = [t.requires_grad_() for t in (randn(2, 4, 3), randn(2, 5, 3), scale)]
        assert gradcheck(fn, tensors) and gradgradcheck(fn, tensors, fast_mode=True)
        of_sum = lambda *t: fn(*t).sum()  # noqa: B023, E731
        expected = torch.autograd.grad(of_sum(*tensors), tensors)
        torch.testing.assert_close(torch.func.grad(of_sum, (0, 1, 2))(*tensors), expected)
        plain = [t.detach() for t in tensors]
        value, found = fastmeta.value_and_grad(fastmeta.proto_loss, (0, 1))(
            *plain[:2], TARGETS, metric=metric, **{name: plain[2]}
        )
        torch.testing.assert_close((value, *found), (fn(*plain), *expected[:2]))
        if name == "scale_tril":
            assert expected[2].triu(1).count_nonzero() == 0 != expected[2].tril().count_nonzero()


def test_an_offset_costs_no_digits_and_low_precision_is_rounded_once():
    q, c, L = randn(2, 4, 64), randn(2, 5, 64), randn(64, 64)
    expected = fastmeta.proto_log_softmax(q, c, scale_tril=L)
    moved = fastmeta.proto_log_softmax(q.float() + 1000, c.float() + 1000, scale_tril=L.float())
    truth = fastmeta.proto_log_softmax(
        (q.float() + 1000).double(), (c.float() + 1000).double(), scale_tril=L.float().double()
    )
    torch.testing.assert_close(moved.double(), truth, rtol=1e-5, atol=1e-4)
    half = fastmeta.proto_log_softmax(q.bfloat16(), c.bfloat16(), scale_tril=L.bfloat16())
    assert half.dtype == torch.bfloat16 and (half - expected).norm() < 0.02 * expected.norm()
    with torch.autocast("cpu", torch.bfloat16):
        wide = fastmeta.proto_log_softmax(q.float(), c.float(), scale_tril=L.float())
    torch.testing.assert_close(wide.double(), expected, rtol=1e-5, atol=1e-4)


def test_errors():
    q, c = randn(2, 4, 3), randn(2, 5, 3)
    for options, text in (
        ({"scale_diag": randn(3), "scale_tril": randn(3, 3)}, "scale_diag and scale_tril must not come together"),
        ({"scale_diag": randn(4)}, r"scale_diag must have shape \[\.\.\., 3\], got \[4\]"),
        ({"scale_tril": randn(3)}, r"scale_tril must have shape \[\.\.\., 3, 3\], got \[3\]"),
        ({"scale_diag": randn(4, 3)}, r"scale_diag must have the batch dimensions of query, \[2\], or none"),
        ({"scale_diag": randn(3).float()}, "scale_diag must have the dtype of query"),
        ({"scale_diag": 2.0}, "scale_diag must be a tensor, got float"),
    ):
        for name, op in (
            ("proto_loss", loss),
            ("proto_log_softmax", fastmeta.proto_log_softmax),
            ("matching_log_probs", matching),
        ):
            with pytest.raises((TypeError, ValueError), match=f"{name}: {text}"):
                op(q, c, **options)

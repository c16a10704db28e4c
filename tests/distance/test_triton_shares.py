"""proto_loss with soft targets in the Triton kernels: what is far, infinite or not to count, the largest share of many, gradients alone."""

import pytest
import torch

import fastmeta
from harness.cases import randn
from harness.compare import check_against_reference, values_and_grads

pytest.importorskip("triton")


def both(fn, tensors):
    found = []
    for backend in ("triton", "reference"):
        with fastmeta.backend(backend):
            found.append(values_and_grads(fn, tensors))
    return found


@pytest.mark.parametrize("columns", [5, 40])
def test_far_and_infinite_prototypes(columns):
    """The first is far, and gets nearer; one far from all with no share; another infinitely far: its queries are as in the reference."""
    q, c, shares = randn(5, 4).float(), randn(columns, 4).float(), torch.rand(5, columns)
    c[0] += 300
    c[2] += 1e4
    shares[:, 2] = 0
    infinite = c.clone()
    infinite[3, 0] = torch.inf
    shares[1, 3] = 0

    def fn(q, y, c=c):
        return fastmeta.proto_loss(q + 1e3, c.to(q) + 1e3, y, metric="sqeuclidean", reduction="none")

    check_against_reference(fn, [q, shares], "triton")
    found, expected = both(lambda q, y: fn(q, y, infinite), [q, shares])
    torch.testing.assert_close(found[0], expected[0], equal_nan=True)
    torch.testing.assert_close(found[2], expected[2], equal_nan=True)
    assert found[0].isnan().tolist() == [False, True, False, False, False] and found[0].isinf().any()


def test_the_largest_share_of_many():
    """In another block of columns than the nearest; of equal ones the first; all negative; with what does not count the reference's."""
    x, shares = torch.arange(40.0).unsqueeze(-1), torch.full((40, 40), -2.0)
    shares[torch.arange(40), torch.arange(40)] = -1
    shares[5, 35] = shares[36, 1] = shares[7, 8] = -1
    shares[38, 39] = torch.nan
    exclude = torch.full((40,), -1)
    exclude[9], shares[9, 10] = 10, 0
    with fastmeta.backend("triton"):
        _, hits = fastmeta.proto_loss(x, x, shares, exclude=exclude, reduction="none", return_accuracy=True)
        _, mean = fastmeta.proto_loss(x, x, shares, exclude=exclude, return_accuracy=True)
    wrong = [9, 36, 38]
    assert hits.tolist() == [float(i not in wrong) for i in range(40)] and mean == 37 / 40


@pytest.mark.parametrize("columns", [3, 37])
def test_a_share_of_what_does_not_count(columns):
    """As on CUDA, where the op does not look: NaN for the query and every gradient of it; the others' are theirs."""
    from fastmeta.kernels.proto_loss import proto_loss_bwd, proto_loss_fwd

    tensors = randn(4, 5), randn(columns, 5), randn(4, columns).masked_fill(torch.arange(columns) == 1, 0)
    tensors[2][2, 1] = 0.5
    for queries, counts_hits in ((4, True), (0, False)):
        q, c, shares = tensors[0][:queries], tensors[1], tensors[2][:queries]
        args = q, c, shares, 0.5, torch.ones(queries, dtype=torch.int64), None, None, None
        static, needs = ("euclidean", -1, "none", 0.0, 0.0, counts_hits), (True, True, True, False, False)
        outputs, saved = proto_loss_fwd(*args, *static, needs)
        dq, dc, dshares = proto_loss_bwd((torch.ones_like(outputs[0]),), saved, *args, *static, needs)
        assert dshares.shape == shares.shape and dq.shape == q.shape
        if queries:
            assert all(x.isnan().any(-1).tolist() == [False, False, True, False] for x in (outputs[0][:, None], dq))
            assert dshares.isnan().any(-1).tolist() == [False, False, True, False]
            assert (dshares[[0, 1, 3], 1] == 0).all() and dc.isnan().all() and outputs[1][2] == 0
            again = proto_loss_bwd((torch.ones_like(outputs[0]),), (), *args, *static, needs)
            assert torch.equal(again[2][0], dshares[0])
        else:
            assert not dc.any()


@pytest.mark.parametrize(("columns", "rows", "features"), [(3, 260, 16), (37, 3, 40)])
def test_the_gradient_of_shares_alone_and_several_programs(columns, rows, features):
    """One program of several that find the same distances stores it."""
    q, c, shares = randn(rows, features).float(), randn(columns, features).float(), randn(rows, columns).float()
    for reduction, tensors in (("mean", [shares]), ("sum", [shares, q])):
        fn = lambda y, x=q, r=reduction: fastmeta.proto_loss(x, c, y, temperature=4.0, reduction=r)  # noqa: E731
        torch.testing.assert_close(*both(fn, tensors))

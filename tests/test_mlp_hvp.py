import pytest
import torch
from compare import check_against_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from mlp_cases import ACTIVATIONS, KERNELS, LOSSES, any_problem, native, native_by_name, problem

import fastmeta


def op(p):
    n = len(p.flat)

    def fn(*t):
        return fastmeta.mlp_hvp(p.tree(t[:n]), p.tree(t[n : 2 * n]), t[2 * n], p.y, **p.options())

    return fn


def tensors(p):
    vectors = [torch.randn(p.x.shape[0], *p.core(t), dtype=p.x.dtype) for t in p.flat]
    return [*p.flat, *vectors, p.x]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("backend", [*KERNELS, "reference"])
def test_equals_the_hessian(activation, loss, backend):
    """The dense Hessian by torch.func, times the vector."""
    p = problem((2, 3, 2), 5, T=1, activation=activation, loss=loss)
    sizes = [t.numel() for t in p.params]

    def of_flat(theta):
        pieces = [piece.view_as(t) for piece, t in zip(theta.split(sizes), p.params, strict=True)]
        with fastmeta.backend("reference"):
            return fastmeta.mlp_loss(pieces, p.x[0], p.y[0], **p.options())

    hessian = torch.func.hessian(of_flat)(torch.cat([t.flatten() for t in p.params]))
    vectors = [torch.randn_like(t) for t in p.params]
    with fastmeta.backend(backend):
        ours = fastmeta.mlp_hvp(p.params, vectors, p.x[0], p.y[0], **p.options())
    expected = hessian @ torch.cat([v.flatten() for v in vectors])
    torch.testing.assert_close(torch.cat([h.flatten() for h in ours]), expected)


@native_by_name
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_net(backend, data):
    p = any_problem(data, backend)
    check_against_reference(op(p), tensors(p), backend)


@native
def test_float32(backend):
    p = problem((7, 33, 4), 17, dtype=torch.float32)
    check_against_reference(op(p), tensors(p), backend)


@native
def test_one_vector_for_all_tasks(backend):
    p = problem((3, 4, 2), 5)
    shared = [torch.randn_like(t) for t in p.params]
    each = [v.expand(3, *v.shape) for v in shared]
    for a, b in zip(
        fastmeta.mlp_hvp(p.params, shared, p.x, p.y), fastmeta.mlp_hvp(p.params, each, p.x, p.y), strict=True
    ):
        assert torch.equal(a, b)


@native
def test_errors(backend):
    p = problem((3, 4, 2), 5)
    vectors = [torch.randn_like(t) for t in p.params]
    with pytest.raises(ValueError, match="mlp_hvp: vectors must be a sequence of 4 entries like params, got 2"):
        fastmeta.mlp_hvp(p.params, vectors[:2], p.x, p.y)
    with pytest.raises(ValueError, match=r"mlp_hvp: vectors\[0\] must have shape \[3, 4, 3\], got \[4, 2\]"):
        fastmeta.mlp_hvp(p.params, [vectors[0][:, :2], *vectors[1:]], p.x, p.y)

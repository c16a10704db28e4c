import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import hessian, jacrev

import fastmeta
from harness.compare import check_against_reference
from harness.mlp_calls import hvp
from harness.mlp_cases import ACTIVATIONS, any_net, everywhere, losses, native, problem, problems

CURVATURES = ("hessian", "ggn")
test_any_net = any_net(hvp, st.sampled_from(CURVATURES), max_examples=60)


def flat(tree):
    """[T, P] of tensors [T, ...]."""
    return torch.cat([t.flatten(1) for t in tree if t is not None], 1)


def of_flat(p, fn):
    """`fn`, a function of the parameters, as a function of all their elements in a row, on the reference; and those."""
    sizes = [t.numel() for t in p.params]

    def of(theta):
        pieces = [piece.view_as(t) for piece, t in zip(theta.split(sizes), p.params, strict=True)]
        with fastmeta.backend("reference"):
            return fn(pieces)

    return of, torch.cat([t.flatten() for t in p.params])


def check_against_matrix(p, matrix, curvature):
    vectors = [torch.randn_like(t) for t in p.params]
    ours = fastmeta.mlp_hvp(p.params, vectors, p.x[0], p.y[0], **p.options(), curvature=curvature)
    expected = matrix @ torch.cat([v.flatten() for v in vectors])
    torch.testing.assert_close(torch.cat([h.flatten() for h in ours]), expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@losses
@everywhere
def test_equals_the_hessian(activation, loss, backend):
    """The dense Hessian by torch.func, times the vector."""
    p = problem((2, 3, 2), 5, T=1, activation=activation, loss=loss)
    value, theta = of_flat(p, lambda params: fastmeta.mlp_loss(params, p.x[0], p.y[0], **p.options()))
    check_against_matrix(p, hessian(value)(theta), "hessian")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@losses
@everywhere
def test_equals_the_gauss_newton_matrix(activation, loss, backend):
    """J by torch.func and the Hessian of the loss in the outputs written out: J' H_out J, times the vector."""
    n, classes = 5, 3
    p = problem((2, 4, 4, classes), n, T=1, activation=activation, loss=loss)
    if loss == "cross_entropy":
        p.y[0] = torch.tensor([2, -100, 0, 1, -100])
    outputs, theta = of_flat(p, lambda params: fastmeta.mlp_forward(params, p.x[0], activation=activation))
    jacobian = jacrev(outputs)(theta)  # [n, classes, P]
    if loss == "mse":
        of_loss = torch.eye(classes, dtype=theta.dtype).expand(n, classes, classes) * 2 / (n * classes)
    else:
        probabilities, counted = outputs(theta).softmax(-1), (p.y[0] != -100).to(theta.dtype)
        of_loss = torch.diag_embed(probabilities) - probabilities.unsqueeze(2) * probabilities.unsqueeze(1)
        of_loss = of_loss * counted[:, None, None] / counted.sum()
    check_against_matrix(p, torch.einsum("iap,iab,ibq->pq", jacobian, of_loss, jacobian), "ggn")


@settings(max_examples=60)
@given(problems())
def test_gauss_newton_is_symmetric_and_positive_semi_definite(p):
    u, v = p.vectors(), p.vectors()
    of_u, of_v = (fastmeta.mlp_hvp(p.params, p.tree(w), p.x, p.y, **p.options(), curvature="ggn") for w in (u, v))
    u, v, of_u, of_v = map(flat, (u, v, of_u, of_v))
    size = u.norm(dim=1) * of_v.norm(dim=1) + v.norm(dim=1) * (of_u.norm(dim=1) + of_v.norm(dim=1))
    assert ((v * of_v).sum(1) >= -1e-13 * size).all()
    assert ((u * of_v - v * of_u).sum(1).abs() <= 1e-12 * size).all()


@losses
@everywhere
def test_one_layer_has_no_other_curvature(loss, backend):
    p = problem((7, 4), 9, loss=loss)
    vectors = p.vectors()
    both = [hvp(p, curvature)[0](*p.flat, *vectors, p.x) for curvature in CURVATURES]
    torch.testing.assert_close(*both, rtol=1e-13, atol=1e-15)


@everywhere
def test_gauss_newton_does_not_see_the_targets_of_mse(backend):
    p = problem((3, 4, 2), 5, loss="mse")
    vectors = p.vectors()
    y = p.y.clone().requires_grad_()
    ours = fastmeta.mlp_hvp(p.params, vectors, p.x, y, **p.options(), curvature="ggn")
    nowhere = fastmeta.mlp_hvp(p.params, vectors, p.x, torch.full_like(y, torch.nan), **p.options(), curvature="ggn")
    torch.testing.assert_close(ours, nowhere)
    params = [t.requires_grad_() for t in p.params]
    ours = fastmeta.mlp_hvp(params, vectors, p.x, y, **p.options(), curvature="ggn")
    (dy,) = torch.autograd.grad(flat(ours).sum(), y, allow_unused=True, materialize_grads=True)
    assert not dy.any()


@native
@pytest.mark.parametrize("curvature", CURVATURES)
def test_float32(backend, curvature):
    p = problem((7, 33, 4), 17, dtype=torch.float32)
    check_against_reference(*hvp(p, curvature), backend)


@native
@pytest.mark.parametrize("curvature", CURVATURES)
def test_one_vector_for_all_tasks(backend, curvature):
    p = problem((3, 4, 2), 5)
    shared = [torch.randn_like(t) for t in p.params]
    each = [v.expand(3, *v.shape) for v in shared]
    assert all(map(torch.equal, *(hvp(p, curvature)[0](*p.flat, *vectors, p.x) for vectors in (shared, each))))


@native
def test_errors(backend):
    p = problem((3, 4, 2), 5)
    vectors = p.vectors()
    for given_, curvature, message in (
        (vectors[:2], "ggn", "vectors must be a sequence of 4 entries like params, got 2"),
        ([vectors[0][0][:, :2], *vectors[1:]], "ggn", r"vectors\[0\] must have shape \[3, 4, 3\], got \[4, 2\]"),
        (vectors, "fisher", "curvature must be one of 'hessian', 'ggn', got 'fisher'"),
    ):
        with pytest.raises(ValueError, match="mlp_hvp: " + message):
            fastmeta.mlp_hvp(p.params, given_, p.x, p.y, curvature=curvature)

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, jacrev

import fastmeta
from harness.compare import check_against_reference
from harness.conv_cases import both, ext, kinds, losses, module, problem, problems, same, task_loss

CURVATURES = ("hessian", "ggn")


def make(p, curvature="hessian"):
    n = len(p.flat)
    targets = [p.y] if p.loss == "mse" else []

    def fn(*t):
        y = t[2 * n + 1] if targets else p.y
        found = fastmeta.conv_hvp(p.tree(t[:n]), p.tree(t[n : 2 * n]), t[2 * n], y, curvature=curvature, **p.options())
        return tuple(x for x in found if x is not None)

    return fn, [*p.flat, *p.vectors(), p.x, *targets]


@kinds
@losses
@both
def test_equals_torch_double_backward(backend, kind, loss):
    p = problem(kind, size=12, loss=loss, shared=False)
    fn, tensors = make(p)
    n = len(p.flat)
    ours = fn(*tensors)
    for t in range(3):
        model = module(p, t)
        theta, v = list(model.parameters()), [x[t] for x in tensors[n : 2 * n]]
        grads = torch.autograd.grad(task_loss(model(p.x[t]), p.y[t]), theta, create_graph=True)
        same([x[t] for x in ours], torch.autograd.grad(grads, theta, v, materialize_grads=True, allow_unused=True))


@losses
@both
def test_equals_the_gauss_newton_matrix(backend, loss):
    """J by torch.func and the Hessian of the loss in the outputs written out: J' H_out J, times the vector."""
    p = problem("group norm", n=4, T=1, channels=4, size=6, loss=loss)
    model, ways = module(p, 0), 3
    theta = {name: x.detach() for name, x in model.named_parameters()}
    jacobian = jacrev(lambda values: functional_call(model, values, (p.x[0],)))(theta)
    J = torch.cat([x.flatten(2) for x in jacobian.values()], 2)  # [n, ways, P]
    if loss == "mse":
        of_loss = torch.eye(ways, dtype=J.dtype).expand(4, ways, ways) * 2 / (4 * ways)
    else:
        probabilities, counted = model(p.x[0]).detach().softmax(-1), (p.y[0] != -100).to(J.dtype)
        of_loss = torch.diag_embed(probabilities) - probabilities.unsqueeze(2) * probabilities.unsqueeze(1)
        of_loss = of_loss * counted[:, None, None] / counted.sum()
    fn, tensors = make(p, "ggn")
    v = torch.cat([x[0].flatten() for x in tensors[len(p.flat) : 2 * len(p.flat)]])
    expected = torch.einsum("iap,iab,ibq,q->p", J, of_loss, J, v)
    same([torch.cat([x[0].flatten() for x in fn(*tensors)])], [expected])


@settings(max_examples=80, deadline=None)
@given(problems(), st.sampled_from(CURVATURES))
def test_any_net(p, curvature):
    check_against_reference(*make(p, curvature), "ext")


@pytest.mark.parametrize("curvature", CURVATURES)
@ext
def test_float32(backend, curvature):
    check_against_reference(*make(problem(channels=17, size=14, dtype=torch.float32), curvature), "ext")


@ext
def test_one_vector_for_all_tasks(backend):
    p = problem()
    n, (fn, tensors) = len(p.flat), make(p)
    shared = [v[0] for v in tensors[n : 2 * n]]
    each = [v.expand(3, *v.shape) for v in shared]
    for a, b in zip(*(fn(*p.flat, *vectors, p.x) for vectors in (shared, each)), strict=True):
        assert torch.equal(a, b)


@both
def test_errors(backend):
    p = problem()
    vectors = p.tree(p.vectors())
    with pytest.raises(ValueError, match="conv_hvp: vectors must be a sequence of 10 entries like params, got 2"):
        fastmeta.conv_hvp(p.params, vectors[:2], p.x, p.y, **p.options())
    with pytest.raises(
        ValueError, match=r"conv_hvp: vectors\[0\] must have shape \[3, 4, 2, 3, 3\], got \[3, 4, 2, 3, 2\]"
    ):
        fastmeta.conv_hvp(p.params, [vectors[0][..., :2], *vectors[1:]], p.x, p.y, **p.options())
    with pytest.raises(ValueError, match="conv_hvp: curvature must be one of 'hessian', 'ggn', got 'fisher'"):
        fastmeta.conv_hvp(p.params, vectors, p.x, p.y, curvature="fisher", **p.options())

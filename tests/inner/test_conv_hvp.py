import pytest
import torch
from hypothesis import strategies as st
from torch.func import functional_call, jacrev

import fastmeta
from harness.compare import check_against_reference, outputs
from harness.conv_cases import any_net, both, ext, kinds, module, problem, same, single, task_loss
from harness.mlp_calls import hvp
from harness.mlp_cases import losses

CURVATURES = ("hessian", "ggn")


test_any_net = any_net(hvp, st.sampled_from(CURVATURES), max_examples=80)


@kinds
@losses
@both
def test_equals_torch_double_backward(backend, kind, loss):
    p = problem(kind, size=12, loss=loss, shared=False)
    fn, tensors = hvp(p)
    n = len(p.flat)
    ours = outputs(fn(*tensors))
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
    fn, tensors = hvp(p, "ggn")
    v = torch.cat([x[0].flatten() for x in tensors[len(p.flat) : 2 * len(p.flat)]])
    expected = torch.einsum("iap,iab,ibq,q->p", J, of_loss, J, v)
    same([torch.cat([x[0].flatten() for x in outputs(fn(*tensors))])], [expected])


@pytest.mark.parametrize("curvature", CURVATURES)
@ext
def test_float32(backend, curvature):
    check_against_reference(*hvp(single(), curvature), "ext")


@ext
def test_one_vector_for_all_tasks(backend):
    p = problem()
    n, (fn, tensors) = len(p.flat), hvp(p)
    shared = [v[0] for v in tensors[n : 2 * n]]
    each = [v.expand(3, *v.shape) for v in shared]
    found = [outputs(fn(*p.flat, *vectors, p.x)) for vectors in (shared, each)]
    assert all(map(torch.equal, *found))


@both
def test_errors(backend):
    p = problem()
    vectors = p.tree(p.vectors())
    for given, curvature, message in (
        (vectors[:2], "ggn", "vectors must be a sequence of 10 entries like params, got 2"),
        (
            [vectors[0][..., :2], *vectors[1:]],
            "ggn",
            r"vectors\[0\] must have shape \[3, 4, 2, 3, 3\], got \[3, 4, 2, 3, 2\]",
        ),
        (vectors, "fisher", "curvature must be one of 'hessian', 'ggn', got 'fisher'"),
    ):
        with pytest.raises(ValueError, match="conv_hvp: " + message):
            fastmeta.conv_hvp(p.params, given, p.x, p.y, curvature=curvature, **p.options())

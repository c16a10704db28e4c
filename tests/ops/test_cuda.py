"""On a GPU alone (conftest.py leaves it out elsewhere): streams and CUDA graphs."""

import pytest
import torch

import fastmeta
from fastmeta import _dispatch
from harness.cases import BACKENDS, VARIANTS, case
from harness.compare import outputs
from harness.learner_cases import ALL, data_of, learner_case, made
from measure.timing import captured

LEARNERS = ("MAML", "MetaSGD", "ANIL", "LEO", "ProtoNet", "MatchingNet")  # those that run on ops alone
NATIVE = [
    (op, backend) for op, backends in (BACKENDS | VARIANTS).items() for backend in backends if backend != "reference"
]


@pytest.mark.parametrize(
    ("name", "backend"), [*NATIVE, *((learner, "auto") for learner in LEARNERS)], indirect=["backend"]
)
def test_a_graph_computes_anew_from_what_lies_in_its_inputs(name, backend):
    """Captured on a side stream, so the kernels run on the current one; replayed on other numbers, so none were read on the host."""
    c = (learner_case if name in LEARNERS else case)(name, dtype=torch.float32)

    def run():
        found = outputs(c.fn(*leaves))
        grads = torch.autograd.grad(found, leaves, [torch.ones_like(y) for y in found], materialize_grads=True)
        return [y.detach() for y in found], grads

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        leaves = [t.clone().requires_grad_() for t in c.tensors]
        replay = captured(run)
        for _ in range(2):
            with torch.no_grad():
                for leaf in leaves:
                    leaf.mul_(0.9)
            found = replay()
            with fastmeta.backend("reference"):
                expected = run()
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.cuda.synchronize()


@pytest.mark.parametrize("name", ALL)
def test_a_graphed_learner_trains_as_fit_does(name):
    plain, of_graph = made(name), made(name)
    of_graph.load_state_dict(plain.state_dict())
    data = [data_of(name) for _ in range(7)]
    expected = fastmeta.fit(plain, data, 7)
    found = fastmeta.fit(of_graph, data, 7, graph=True)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close([*of_graph.parameters()], [*plain.parameters()], rtol=1e-6, atol=1e-6)


def test_ops_follow_each_other_on_a_stream():
    """A long product before and an op after it, on a stream that nobody waits for."""
    x, y = torch.randn(4, 2048, 2048), torch.randint(0, 5, (4, 2048))
    weights = torch.randn(5, 2048) / 2048**0.5
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(20):
            x = torch.linalg.vector_norm(x @ x, dim=-1, keepdim=True).reciprocal() * (x @ x)
        found = [fastmeta.mlp_loss([weights, None], x, y), fastmeta.proto_loss(x, weights, y)]
        with fastmeta.backend("reference"):
            expected = [fastmeta.mlp_loss([weights, None], x, y), fastmeta.proto_loss(x, weights, y)]
    torch.cuda.synchronize()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_every_op_has_a_kernel_here():
    missing = {
        op: _dispatch.unavailable(op, backend, torch.empty(0).device) for op, backend in NATIVE if op in BACKENDS
    }
    assert not any(missing.values()), missing

"""Every op and every learner on the meta device: shapes without memory, and no value that could be asked for."""

import pytest
import torch
from torch import nn

import fastmeta
from harness.any_module import Unknown
from harness.cases import OPS, VARIANTS, case
from harness.compare import outputs
from harness.learner_cases import ALL, N, data_of, made, mlp

pytestmark = pytest.mark.cpu


def kinds(tensors, device):
    """What may be known of tensors without values."""
    assert {x.device.type for x in tensors} == {device}
    return [(x.shape, x.dtype) for x in tensors]


def two_orders(c):
    """The outputs of a case, their gradients, and the gradients of these."""
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in c.tensors]
    found = list(outputs(c.fn(*leaves)))
    every = [*found]
    for last in (False, True):
        value = sum(y.sin().sum() for y in found if y.requires_grad)
        options = {"create_graph": not last, "allow_unused": True, "materialize_grads": True}
        found = torch.autograd.grad(value, leaves, **options)
        every += found
    return every


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("op", [*OPS, *VARIANTS])
def test_ops(op, dtype):
    with torch.device("meta"):
        c = case(op, dtype=dtype)
    assert kinds(two_orders(c), "meta") == kinds(two_orders(case(op, dtype=dtype)), "cpu")


def test_value_and_grad():
    x, y = torch.empty(2, 4, 3, device="meta"), torch.empty(2, 4, device="meta", dtype=torch.int64)
    found = fastmeta.value_and_grad(fastmeta.mlp_loss)([torch.empty(5, 3, device="meta"), None], x, y)
    assert kinds([found[0], found[1][0]], "meta") == [((2,), x.dtype), ((5, 3), x.dtype)]


def iteration(name, device):
    """Two meta-iterations and a prediction; the kinds of all that came of them."""
    learner, data = made(name).to(device), [x.to(device) for x in data_of(name)]
    optimiser = fastmeta.optim.Adam(learner.parameters())
    losses = fastmeta.fit(learner, [data] * 2, 2, optimiser=optimiser)
    of_graph = learner.loss(*data)
    of_graph.mean().backward()
    states = [x for state in optimiser.state.values() for key, x in state.items() if key != "step"]
    grads = [p.grad for p in learner.parameters() if p.grad is not None]
    _, outputs = learner.backward(*data, return_outputs=True)
    return kinds([losses, of_graph, learner(*data[:3]), outputs, *learner.parameters(), *grads, *states], device)


@pytest.mark.parametrize("name", ALL)
def test_learners(name):
    assert iteration(name, "meta") == iteration(name, "cpu")


class Asks(nn.Module):
    """Reads a value."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        y = self.inner(x)
        return y * max(y.sum().item(), 1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: fastmeta.MAML(Asks(mlp()), 0.1, 2),
        lambda: fastmeta.MAML(Unknown(mlp()), 0.1, 1, loss=lambda outputs, y: outputs.sum() * y.sum().item()),
        lambda: fastmeta.IMAML(Asks(mlp()), 0.1, 2),
        lambda: fastmeta.Reptile(Asks(mlp()), 0.1, 2),
        lambda: fastmeta.ProtoNet(Asks(mlp()), num_classes=N),
        lambda: fastmeta.ANIL(Asks(mlp()), nn.Linear(N, N), 0.1, 1),
    ],
)
def test_a_planted_value_is_refused(make):
    learner, data = (
        make().to("meta"),
        [x.float().to("meta") if x.is_floating_point() else x.to("meta") for x in data_of("MAML")],
    )
    with pytest.raises(RuntimeError, match=r"item\(\)"):
        fastmeta.fit(learner, [data], 1)


def test_ways_that_only_labels_would_tell():
    x, y = torch.empty(2, 4, 3, device="meta"), torch.empty(2, 4, device="meta", dtype=torch.int64)
    with pytest.raises(ValueError, match="^ProtoNet: num_classes must be given where labels have no values"):
        fastmeta.ProtoNet(nn.Identity()).loss(x, y, x, y)


def test_no_memory():
    """2 TB of distances."""
    x = torch.empty(2**20, 512, device="meta", requires_grad=True)
    found = fastmeta.proto_log_softmax(x, torch.empty(2**19, 512, device="meta"))
    found.sum().backward()
    assert found.shape == (2**20, 2**19) and x.grad.shape == x.shape

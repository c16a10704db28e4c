"""Every op on every backend: derivatives of first, second and third order, and a second inner step through the first."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fastmeta
from harness.cases import EVERYWHERE, case
from harness.compare import outputs
from harness.device import DEVICE

SLOW = ("triton", "emulated") if DEVICE == "cpu" else ()  # compared with the reference, but by no differences
everywhere = pytest.mark.parametrize(("op", "backend"), EVERYWHERE, indirect=["backend"])
quick = pytest.mark.parametrize(("op", "backend"), [x for x in EVERYWHERE if x[1] not in SLOW], indirect=["backend"])


@pytest.mark.parametrize(
    ("op", "backend", "tasks"),
    [(*x, tasks) for x in EVERYWHERE if x[1] not in SLOW for tasks in ((None,) if x[1] == "reference" else (None, 2))],
    indirect=["backend"],
)
def test_first_order(op, backend, tasks):
    """Of the reference for each number by itself; of kernels along random directions, with tasks in front too."""
    c = case(op, tasks)
    assert gradcheck(c.fn, [t.requires_grad_() for t in c.tensors], fast_mode=backend != "reference")


@quick
def test_second_order(op, backend):
    """Along random directions."""
    c = case(op, None)
    assert gradgradcheck(c.fn, [t.requires_grad_() for t in c.tensors], fast_mode=True)


@pytest.mark.parametrize(
    ("op", "backend", "tasks"),
    [(*x, tasks) for x in EVERYWHERE if x[1] != "reference" for tasks in ((None, 2) if x[1] in SLOW else (2,))],
    indirect=["backend"],
)  # fmt: skip
def test_third_order_and_the_two_before(op, backend, tasks):
    """Equal the reference's."""
    c = case(op, tasks)

    def three(*tensors):
        orders = [outputs(c.fn(*tensors))]
        for _ in range(3):
            value = sum(y.sin().sum() for y in orders[-1])
            options = {"create_graph": len(orders) < 3, "allow_unused": True, "materialize_grads": True}
            orders.append(torch.autograd.grad(value, tensors, **options))
        return orders

    tensors = [t.requires_grad_() for t in c.tensors]
    ours = three(*tensors)
    with fastmeta.backend("reference"):
        torch.testing.assert_close(ours, three(*tensors))


@everywhere
def test_the_backend_of_forward_serves_backward(op, backend):
    c = case(op)
    tensors, grads = [t.requires_grad_() for t in c.tensors], []
    for later in ("auto", backend):
        with fastmeta.backend(backend):
            found = outputs(c.fn(*tensors))
        with fastmeta.backend(later):
            of = torch.autograd.grad(found, tensors, [torch.ones_like(y) for y in found], allow_unused=True)
        grads.append(of)
    assert all(
        a is b is None or torch.equal(a, b) for a, b in zip(*grads, strict=True)
    )  # bit for bit: the same kernels ran


@everywhere
def test_new_tensors_are_made_where_the_inputs_are(op, backend):
    """Not on the default device, which here holds no numbers."""
    c = case(op)
    tensors = [t.requires_grad_() for t in c.tensors]
    with torch.device("meta"):
        found = outputs(c.fn(*tensors))
        for create_graph in (True, False):
            value = sum(y.sin().sum() for y in found)
            options = {"create_graph": create_graph, "allow_unused": True, "materialize_grads": True}
            found = torch.autograd.grad(value, tensors, **options)
            assert all(g.device == t.device for g, t in zip(found, tensors, strict=True))


@everywhere
def test_gradients_only_where_asked(op, backend):
    """Asking for one tensor's gradient gives what asking for all gives."""
    c = case(op)
    tensors = [t.requires_grad_() for t in c.tensors]
    found = outputs(c.fn(*tensors))
    every = torch.autograd.grad(found, tensors, [torch.ones_like(y) for y in found], allow_unused=True)
    for i, expected in enumerate(every):
        alone = [t.detach().requires_grad_(j == i) for j, t in enumerate(tensors)]
        found = [y for y in outputs(c.fn(*alone)) if y.requires_grad]
        if not found:
            assert expected is None or not expected.any()
            continue
        (grad,) = torch.autograd.grad(found, [alone[i]], [torch.ones_like(y) for y in found])
        torch.testing.assert_close(grad, expected)

"""Ops as opaque nodes of traced graphs: they own their memory, run a kernel once, and are what torch asks of custom ops."""

import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import fastmeta
from fastmeta import _ext
from fastmeta._dispatch import FUSED, WITHOUT_KERNELS, op_on
from harness.cases import EVERYWHERE, case
from harness.compare import outputs, scalar, values_and_grads

NATIVE = [(op, backend) for op, backend in EVERYWHERE if op not in WITHOUT_KERNELS and backend != "reference"]


class OwnMemory(TorchDispatchMode):
    """What an opaque node returns must not share memory with what it got, nor one output with another: Inductor reuses it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        if func.namespace == "fastmeta":
            places = [
                x.untyped_storage().data_ptr() for x in tree_leaves((args, outputs)) if isinstance(x, torch.Tensor)
            ]
            made = places[len(places) - len(outputs) :]
            self.seen.append(func.__name__)
            self.calls.append((func, args))
            assert len(set(made)) == len(made) and not set(made) & set(places[: len(places) - len(made)]), func
        return outputs


@pytest.mark.parametrize(("op", "backend"), NATIVE, indirect=["backend"])
def test_opaque_nodes_own_their_memory(op, backend):
    c, mode = case(op), OwnMemory()
    mode.seen, mode.calls = [], []
    with mode:
        values_and_grads(scalar(c), c.tensors)
    nodes = ["forward_keeping", "backward_kept"] if keeps(op) else ["forward", "backward"]
    assert [name.split(".")[0] for name in mode.seen] == nodes


def keeps(op):
    """Whether forward hands its gradients on to backward."""
    return (
        re.sub("_(weighted|steps|replaced|soft|residual)$", "", op) in FUSED
        and torch.get_default_device().type == "cpu"
    )


@pytest.mark.cpu
def test_calls_for_other_gradients_are_kept_apart():
    """Of the same shapes, one after the other, before either's backward."""
    c, mode = case("proto_loss"), OwnMemory()
    mode.seen, mode.calls = [], []

    def found():
        calls = [[t.detach().requires_grad_(i in of) for i, t in enumerate(c.tensors)] for of in ((0, 1, 2), (0,))]
        losses = [scalar(c)(*tensors) for tensors in calls]
        wanted = [[t for t in tensors if t.requires_grad] for tensors in calls]
        return [torch.autograd.grad(*pair) for pair in zip(losses, wanted, strict=True)]

    with mode:
        ours = found()
    assert mode.seen.count("forward_keeping.default") == mode.seen.count("backward_kept.default") == 2
    torch.testing.assert_close(ours, found())


@pytest.mark.cpu
@pytest.mark.parametrize("op", FUSED)
def test_a_compiled_fused_loss_runs_its_kernel_once(op, monkeypatch):
    calls, kernel = [], getattr(_ext, f"{op}_fwd")
    monkeypatch.setattr(_ext, f"{op}_fwd", lambda *args: (calls.append(args), kernel(*args))[1])
    op_on.cache_clear()
    torch._dynamo.reset()
    c = case(op)
    weighted = lambda *tensors: outputs(c.fn(*tensors))[0] * torch.tensor([2.0, -3.0], dtype=torch.float64)  # noqa: E731
    expected = values_and_grads(lambda *tensors: weighted(*tensors).sum(), c.tensors)
    calls.clear()
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in c.tensors]
    loss = torch.compile(weighted, backend="aot_eager", fullgraph=True)(*leaves).sum()
    wanted = [x for x in leaves if x.requires_grad]
    found = [torch.autograd.grad(loss, wanted, retain_graph=True) for _ in range(2)]  # what is kept is not written over
    assert len(calls) == 1
    for grads in found:
        torch.testing.assert_close([loss, *grads], outputs(expected), rtol=0, atol=0)


@pytest.mark.cpu
def test_a_compiled_fused_loss_on_another_backend_than_at_first():
    """Compiled once, it runs on the reference, where forward keeps nothing."""
    torch._dynamo.reset()
    c = case("mlp_meta_loss")
    compiled = torch.compile(scalar(c), backend="aot_eager", fullgraph=True)
    expected = values_and_grads(compiled, c.tensors)
    with fastmeta.backend("reference"):
        torch.testing.assert_close(values_and_grads(compiled, c.tensors), expected)


@pytest.mark.parametrize("op", ["proto_loss", "mlp_meta_loss"])
def test_compile_with_inductor(op):
    torch._dynamo.reset()
    c = case(op)
    compiled = torch.compile(scalar(c), fullgraph=True)
    torch.testing.assert_close(values_and_grads(compiled, c.tensors), values_and_grads(scalar(c), c.tensors))


@pytest.mark.parametrize("op", ["proto_loss", "mlp_meta_loss", "mlp_hvp"])
def test_opcheck(op):
    """The opaque nodes, two of each kind: schema, fake tensors, registration, tracing."""
    c, mode = case(op), OwnMemory()
    mode.seen, mode.calls = [], []
    with mode:
        values_and_grads(scalar(c), c.tensors)
    assert len(mode.calls) == 2
    leaf = lambda x: x.detach().requires_grad_(x.is_floating_point())  # noqa: E731
    for (node, args), of_inputs in zip(mode.calls, (leaf, torch.Tensor.detach), strict=True):  # no second derivative
        checked = torch.library.opcheck(node, tree_map_only(torch.Tensor, of_inputs, args))
        assert set(checked.values()) == {"SUCCESS"} and len(checked) == 4

"""Every op on every backend under torch.func, torch.compile, autocast, forward-mode AD and the tracers."""

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from cases import EVERYWHERE, case
from compare import outputs, values_and_grads
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastmeta

everywhere = pytest.mark.parametrize(("op", "backend"), EVERYWHERE, indirect=["backend"])


def scalar(c):
    return lambda *tensors: sum(y.sin().sum() for y in outputs(c.fn(*tensors)))


def by_reference(fn, *args):
    with fastmeta.backend("reference"):
        return fn(*args)


@everywhere
def test_grad(op, backend):
    c = case(op)
    transformed = grad(scalar(c), tuple(range(len(c.tensors))))
    torch.testing.assert_close(transformed(*c.tensors), by_reference(transformed, *c.tensors))


@everywhere
@pytest.mark.parametrize("tasks", [None, 2])
def test_vmap_of_grad(op, backend, tasks):
    """A new axis on every tensor."""
    c = case(op, tasks)
    stacked = [torch.stack([t, t + 0.1, t - 0.2]) for t in c.tensors]
    transformed = grad(scalar(c), tuple(range(len(stacked))))
    one_by_one = [by_reference(transformed, *(t[i] for t in stacked)) for i in range(3)]
    expected = tuple(torch.stack(parts) for parts in zip(*one_by_one, strict=True))
    torch.testing.assert_close(vmap(transformed)(*stacked), expected)


@everywhere
def test_vmap_over_one_tensor(op, backend):
    """A new axis on one tensor, at its end; the others shared."""
    c = case(op)
    for i, tensor in enumerate(c.tensors):
        stacked = torch.stack([tensor, tensor + 0.3], -1)
        in_dims = tuple(-1 if j == i else None for j in range(len(c.tensors)))

        def replaced(value, at=i):
            return [value if j == at else t for j, t in enumerate(c.tensors)]

        ours = vmap(lambda *tensors: outputs(c.fn(*tensors)), in_dims)(*replaced(stacked))
        parts = [outputs(by_reference(c.fn, *replaced(stacked[..., k]))) for k in range(2)]
        torch.testing.assert_close(ours, tuple(torch.stack(p) for p in zip(*parts, strict=True)))


@everywhere
def test_vmap_of_vmap(op, backend):
    c = case(op, None)
    stacked = [torch.stack([torch.stack([t, t + 0.1]), torch.stack([t - 0.1, t * 0.9])]) for t in c.tensors]
    ours = vmap(vmap(grad(scalar(c))))(*stacked)
    parts = [[by_reference(grad(scalar(c)), *(t[i, j] for t in stacked)) for j in range(2)] for i in range(2)]
    torch.testing.assert_close(ours, torch.stack([torch.stack(row) for row in parts]))


@everywhere
def test_vmap_of_grad_of_grad(op, backend):
    """Per-example second derivatives: a meta-gradient under vmap."""
    c = case(op, None)

    def meta(theta, *others):
        step = theta - 0.1 * grad(scalar(c))(theta, *others)
        return scalar(c)(step, *others)

    stacked = [torch.stack([t, t + 0.1]) for t in c.tensors]
    ours = vmap(grad(meta))(*stacked)
    expected = torch.stack([by_reference(grad(meta), *(t[i] for t in stacked)) for i in range(2)])
    torch.testing.assert_close(ours, expected)


@everywhere
def test_jvp_and_hessian(op, backend):
    c = case(op, None)
    tangents = tuple(torch.randn_like(t) for t in c.tensors)
    ours = jvp(scalar(c), tuple(c.tensors), tangents)
    torch.testing.assert_close(ours, by_reference(jvp, scalar(c), tuple(c.tensors), tangents))
    torch.testing.assert_close(hessian(scalar(c))(*c.tensors), by_reference(jacrev(grad(scalar(c))), *c.tensors))


@everywhere
def test_forward_mode(op, backend):
    c = case(op)
    tangents = [torch.randn_like(t) for t in c.tensors]
    with fwAD.dual_level():
        duals = [fwAD.make_dual(t, v) for t, v in zip(c.tensors, tangents, strict=True)]
        ours = fwAD.unpack_dual(scalar(c)(*duals)).tangent
    grads = by_reference(grad(scalar(c), tuple(range(len(tangents)))), *c.tensors)
    torch.testing.assert_close(ours, sum((g * v).sum() for g, v in zip(grads, tangents, strict=True)))


COMPILED = [(op, backend) for op, backend in EVERYWHERE if op != "hvp" and backend != "reference"]


@pytest.mark.parametrize(("op", "backend"), COMPILED, indirect=["backend"])
def test_compile(op, backend):
    torch._dynamo.reset()
    c = case(op)
    compiled = torch.compile(scalar(c), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(values_and_grads(compiled, c.tensors), values_and_grads(scalar(c), c.tensors))


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
            assert len(set(made)) == len(made) and not set(made) & set(places[: len(places) - len(made)]), func
        return outputs


@pytest.mark.parametrize(("op", "backend"), COMPILED, indirect=["backend"])
def test_opaque_nodes_own_their_memory(op, backend):
    c, mode = case(op), OwnMemory()
    mode.seen = []
    with mode:
        values_and_grads(scalar(c), c.tensors)
    assert [name.split(".")[0] for name in mode.seen] == ["forward", "backward"]


@pytest.mark.parametrize("op", ["proto_loss", "mlp_meta_loss"])
def test_compile_with_inductor(op):
    torch._dynamo.reset()
    c = case(op)
    compiled = torch.compile(scalar(c), fullgraph=True)
    torch.testing.assert_close(values_and_grads(compiled, c.tensors), values_and_grads(scalar(c), c.tensors))


@pytest.mark.parametrize("op", ["proto_loss", "mlp_loss", "sgd_step"])
def test_compile_of_vmap_of_grad(op):
    torch._dynamo.reset()
    c = case(op, None)
    stacked = [torch.stack([t, t + 0.1]) for t in c.tensors]
    transformed = vmap(grad(scalar(c)))
    compiled = torch.compile(transformed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*stacked), transformed(*stacked))


@pytest.mark.parametrize("op", ["proto_loss", "mlp_loss"])
def test_second_order_inside_compile_raises(op):
    """torch.compile has no double backward: never silently first order."""
    torch._dynamo.reset()
    c = case(op)
    tensors = [t.requires_grad_() for t in c.tensors]
    loss = torch.compile(scalar(c), fullgraph=True, backend="aot_eager")(*tensors)
    (g,) = torch.autograd.grad(loss, tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(g.sum(), tensors)


@pytest.mark.parametrize(("op", "backend"), COMPILED, indirect=["backend"])
def test_make_fx(op, backend):
    from torch.fx.experimental.proxy_tensor import make_fx

    c = case(op)
    traced = make_fx(lambda *tensors: outputs(c.fn(*tensors)), tracing_mode="real")(*c.tensors)
    others = [t + 0.1 for t in c.tensors]
    torch.testing.assert_close(traced(*others), outputs(c.fn(*others)))


@pytest.mark.parametrize(("op", "backend"), COMPILED, indirect=["backend"])
def test_export(op, backend):
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return outputs(c.fn(*tensors))

    c = case(op)
    exported = torch.export.export(Module(), tuple(c.tensors)).module()
    torch.testing.assert_close(exported(*c.tensors), outputs(c.fn(*c.tensors)))


@everywhere
def test_autocast(op, backend):
    """Under autocast ops compute in float32 and give float32, whatever precision arrives."""
    if op == "hvp":
        pytest.skip("the operations of fn decide")
    c = case(op, dtype=torch.float32)
    low = [t.bfloat16() if i % 2 else t for i, t in enumerate(c.tensors)]
    expected = values_and_grads(scalar(c), [t.float() for t in low])
    leaves = [t.requires_grad_() for t in low]
    with torch.autocast(low[0].device.type, torch.bfloat16):
        found = outputs(c.fn(*leaves))
        loss = scalar(c)(*leaves)
    assert all(y.dtype == torch.float32 for y in found)
    torch.testing.assert_close(loss, expected[0])
    grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    for grad_, leaf, exact in zip(grads, leaves, expected[1:], strict=True):
        assert grad_.dtype == leaf.dtype
        tolerance = {"rtol": 1e-2, "atol": 1e-2} if leaf.dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(grad_.float(), exact, **tolerance)


@everywhere
def test_checkpoint(op, backend):
    from torch.utils.checkpoint import checkpoint

    c = case(op)
    if op == "hvp":  # torch.func inside the forward
        with pytest.raises(RuntimeError, match="saved tensor hooks"):
            checkpoint(scalar(c), *[t.requires_grad_() for t in c.tensors], use_reentrant=False)
        return
    torch.testing.assert_close(
        values_and_grads(lambda *t: checkpoint(scalar(c), *t, use_reentrant=False), c.tensors),
        values_and_grads(scalar(c), c.tensors),
    )


def test_functional_call_of_a_learner():
    learner = fastmeta.MAML(torch.nn.Sequential(torch.nn.Linear(2, 3)).double(), 0.1)
    x, y = torch.randn(2, 4, 2, dtype=torch.float64), torch.randint(0, 3, (2, 4))
    params = dict(learner.named_parameters())

    def loss(p):
        return functional_call(learner, p, (x, y, x)).square().sum()

    found = grad(loss)(params)
    expected = torch.autograd.grad(loss(params), list(params.values()))
    torch.testing.assert_close(tuple(found.values()), expected)

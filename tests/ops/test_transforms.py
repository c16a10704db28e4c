"""Every op and every learner under every transform: each cell of the table in docs/transforms.md (transform_table.py)."""

import re
from contextlib import nullcontext

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

import fastmeta
from fastmeta import _ext
from fastmeta._dispatch import FUSED, WITHOUT_KERNELS, op_on
from harness.cases import BACKENDS, EVERYWHERE, VARIANTS, Case, case, randn
from harness.compare import outputs, values_and_grads
from harness.learner_cases import learner_case
from harness.transform_truths import OPS, SUBJECTS, dot, subject, truth
from harness.transforms import TRANSFORMS
from pages.transform_table import CELLS, PAGE, RAISES, page

everywhere = pytest.mark.parametrize(("op", "backend"), EVERYWHERE, indirect=["backend"])
NATIVE = [(op, backend) for op, backend in EVERYWHERE if op not in WITHOUT_KERNELS and backend != "reference"]
ON_EVERY_BACKEND = (  # the others run on the default one and, unless they compile, on the reference
    "`is_grads_batched`", "`vmap`, one tensor", "`vmap(vmap(grad))`", "`vmap(grad(grad))`", "`jvp(grad)`", "`make_fx`",
)  # fmt: skip


def backends(name, transform):
    if name not in OPS:
        return ["auto"]
    if transform in ON_EVERY_BACKEND:
        return (BACKENDS | VARIANTS)[name]
    return ["auto"] if TRANSFORMS[transform].compiles else ["auto", "reference"]


@pytest.mark.parametrize(
    ("name", "transform", "backend"),
    [(name, transform, backend) for name, transform in CELLS for backend in backends(name, transform)],
    indirect=["backend"],
)
def test_cell(name, transform, backend):
    """It gives the same numbers as plain autograd and central differences on the reference, or raises what the table says."""
    run, s = TRANSFORMS[transform], subject(name)
    if message := RAISES[name].get(transform):
        with pytest.raises(Exception, match=re.escape(message)):
            run.ours(s)
        return
    expected = truth(name, run.truth)
    torch.testing.assert_close([x.detach() for x in outputs(run.ours(s))], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.cpu
def test_the_page_is_not_stale():
    assert PAGE.read_text() == page(), "docs/transforms.md: run make transforms"


def scalar(c):
    return lambda *tensors: sum(y.sin().sum() for y in outputs(c.fn(*tensors)))


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
    return re.sub("_(weighted|replaced)$", "", op) in FUSED and torch.get_default_device().type == "cpu"


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


@pytest.mark.parametrize(
    ("op", "backend"), [x for x in EVERYWHERE if x[0] != "hvp"], indirect=["backend"]
)  # hvp: fn decides
def test_autocast(op, backend):
    """Under autocast ops compute in float32 and give float32, whatever precision arrives."""
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


def labelled(op, labels):
    """An op that takes labels, as a function of its first tensor and them."""
    torch.manual_seed(1)
    rows = randn(3, 2)
    if op in OF_DISTANCES:
        return Case(lambda x, y: OF_DISTANCES[op](x, y, rows), [randn(*labels.shape, 2), labels])
    conv = op.startswith("conv")
    params = [randn(3, 2, 3, 3), *[None] * 3, randn(3, 3), None] if conv else [rows, randn(3)]
    options = {"blocks": [fastmeta.ConvBlock(1, 0, None, pool=1)]} if conv else {}
    function = op.partition("_")[2]

    def fn(x, y):
        x = x[..., None, None].expand(*x.shape, 3, 3) if conv else x
        examples = {"hvp": (params, x, y), "adapt": (0.1, x, y), "meta_loss": (0.1, x, y, x, y)}.get(function, (x, y))
        steps = {"steps": 2} if function in ("adapt", "meta_loss") else {}
        return getattr(fastmeta, op)(params, *examples, **options, **steps)

    return Case(fn, [randn(*labels.shape, 2), labels])


OF_DISTANCES = {
    "prototypes": lambda x, y, rows: fastmeta.prototypes(x, y, 3),
    "proto_loss": lambda x, y, rows: fastmeta.proto_loss(x, rows, y),
    "matching_log_probs": lambda x, y, rows: fastmeta.matching_log_probs(rows, x, y, 3),
}
OF_NETWORKS = [op for op in BACKENDS if op.startswith(("mlp_", "conv_")) and not op.endswith("_forward")]
LABELLED = [(op, backend) for op, backend in EVERYWHERE if op in (*OF_DISTANCES, *OF_NETWORKS)]


@pytest.mark.parametrize(("op", "backend"), LABELLED, indirect=["backend"])
@pytest.mark.parametrize("shared", [False, True])
def test_vmap_over_labels(op, backend, shared):
    """Labels of each row; `shared`: all rows have the same inputs, so that the labels alone are mapped."""
    c = labelled(op, torch.tensor([[0, 1, 2, 1], [2, 2, 1, 0]]))
    x, y = c.tensors
    transformed = grad(lambda x, y: sum(out.sin().sum() for out in outputs(c.fn(x, y))))
    found = vmap(transformed, (None if shared else 0, 0))(x[0] if shared else x, y)
    with fastmeta.backend("reference"):
        expected = torch.stack([transformed(x[0 if shared else i], y[i]) for i in range(2)])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("learner", ["MAML", "MAML (any module)"])
def test_first_order_is_first_order_everywhere(learner):
    """What `first_order` leaves out, forward mode leaves out too."""
    c = learner_case(learner)
    c.loss.learner.first_order = True
    tensors = [t.requires_grad_() for t in c.tensors]
    tangents = tuple(torch.randn_like(t) for t in tensors)
    plain = torch.autograd.grad(c.fn(*tensors).sum(), tensors, allow_unused=True, materialize_grads=True)
    along = jvp(lambda *t: c.fn(*t).sum(), tuple(t.detach() for t in tensors), tangents)[1]
    torch.testing.assert_close(along, dot(plain, tangents))
    c.loss.learner.first_order = False
    exact = torch.autograd.grad(c.fn(*tensors).sum(), tensors, allow_unused=True, materialize_grads=True)
    assert abs(dot(exact, tangents) - along) > 1e-3


@pytest.mark.parametrize("name", [name for name in SUBJECTS if name not in OPS])
def test_autocast_of_learners(name):
    """Ops compute in float32, the layers around them in bfloat16: near to float32, gradients in the parameters' dtype."""
    c = learner_case(name, torch.float32)
    exact = values_and_grads(lambda *t: c.fn(*t).sum(), c.tensors)
    with torch.autocast(c.tensors[0].device.type, torch.bfloat16):
        found = values_and_grads(lambda *t: c.fn(*t).sum(), c.tensors)
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() <= 0.1 * b.norm() + 0.02, (a, b)


def compiled_of_row(f):
    whole = torch.compile(f, fullgraph=True, backend="aot_eager")
    return lambda x, y: whole(x[0], y[0])


@pytest.mark.parametrize("transform", [vmap, compiled_of_row])
def test_the_number_of_classes_must_be_known(transform):
    """Where the labels cannot be looked at."""
    torch._dynamo.reset()
    learner, x, y = (
        fastmeta.ProtoNet(torch.nn.Linear(2, 2)),
        torch.randn(1, 2, 4, 2),
        torch.tensor([[[0, 1, 1, 0]] * 2]),
    )
    with pytest.raises(Exception, match="item|data-dependent"):
        transform(lambda x, y: learner.loss(x, y, x, y))(x, y)


@pytest.mark.parametrize("inside", ["forward", "gradient", "both"])
def test_a_second_derivative_of_a_node(inside):
    """Whichever part a mode sees, such as FlopCounterMode, and of the gradient's own node."""
    c = case("mlp_loss")
    tensors = [t.requires_grad_() for t in c.tensors]

    def gradient():
        with FlopCounterMode(display=False) if inside != "gradient" else nullcontext():
            value = scalar(c)(*tensors)
        with FlopCounterMode(display=False) if inside != "forward" else nullcontext():
            return torch.autograd.grad(value, tensors, create_graph=True)

    def second(grads):
        return torch.autograd.grad(sum(g.sin().sum() for g in grads), tensors)

    expected = second(torch.autograd.grad(scalar(c)(*tensors), tensors, create_graph=True))
    torch.testing.assert_close(second(gradient()), expected)


@pytest.mark.parametrize("op", ["mlp_loss", "mlp_grad"])  # whose forward keeps its gradients, and another
def test_a_second_derivative_of_a_traced_gradient(op):
    """make_fx leaves the gradient's node in the graph, which is differentiated then."""
    c = case(op)

    def gradient(*tensors):
        return torch.autograd.grad(scalar(c)(*tensors), tensors)

    tensors = [t.requires_grad_() for t in c.tensors]
    traced = make_fx(gradient)(*tensors)
    assert "torch.ops.fastmeta.backward" in traced.code
    ours = torch.autograd.grad(sum(g.sin().sum() for g in traced(*tensors)), tensors)
    grads = torch.autograd.grad(scalar(c)(*tensors), tensors, create_graph=True)
    expected = torch.autograd.grad(sum(g.sin().sum() for g in grads), tensors)
    torch.testing.assert_close(ours, expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("op", [op for op in OPS if op != "hvp"])
def test_jit_trace(op):
    """It records the reference: the kernels' memory would be a constant."""
    first, second, third = subject(op).moved
    traced = torch.jit.trace(subject(op).outputs, first)
    for tensors in (second, third):
        torch.testing.assert_close(traced(*tensors), subject(op).outputs(*tensors), rtol=1e-11, atol=1e-11)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace_of_learners():
    x, y = torch.randn(2, 6, 3), torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)
    head, body = torch.nn.Linear(3, 3), torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    for learner in (fastmeta.MAML(head, steps=2), fastmeta.ProtoNet(head, num_classes=3)):
        traced = torch.jit.trace(learner, (x, y, x, y))
        torch.testing.assert_close(traced(-x, y, x, y), learner(-x, y, x, y))
    for learner in (fastmeta.MAML(body, steps=2), fastmeta.Reptile(head), fastmeta.IMAML(head)):
        name = type(learner).__name__
        with pytest.raises(RuntimeError, match=f"{name}: must run outside torch.jit.trace, got a call inside"):
            torch.jit.trace(learner, (x, y, x, y))
    with pytest.raises(RuntimeError, match="hvp: must run outside torch.jit.trace, got a call inside"):
        torch.jit.trace(lambda w: fastmeta.hvp(lambda p: p.sin().sum(), w, w), (x,))

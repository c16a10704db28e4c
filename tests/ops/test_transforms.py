"""Every op and every learner under every transform: each cell of the table in docs/transforms.md (transform_table.py)."""

import re
from contextlib import nullcontext

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import fastmeta
from harness.cases import BACKENDS, EVERYWHERE, VARIANTS, Case, case, randn
from harness.compare import outputs, scalar, values_and_grads
from harness.learner_cases import learner_case
from harness.transform_truths import OPS, SUBJECTS, dot, subject, truth
from harness.transforms import TRANSFORMS
from pages.transform_table import CELLS, COMPILED, EXPORTED, PAGE, RAISES, SECOND_OF_COMPILED, page

ON_EVERY_BACKEND = (  # the others run on the default one and, unless they compile, on the reference
    "`is_grads_batched`", "`vmap`, one tensor", "`vmap(vmap(grad))`", "`vmap(grad(grad))`", "`jvp(grad)`", "`make_fx`",
)  # fmt: skip


def backends(name, transform):
    if name not in OPS:
        return ["auto"]
    if transform in ON_EVERY_BACKEND:
        return (BACKENDS | VARIANTS)[name]
    return ["auto"] if TRANSFORMS[transform].compiles else ["auto", "reference"]


# These take seconds: with the suite every second subject has one of them.
IN_TURN = ("`linearize`", COMPILED[0], COMPILED[2], EXPORTED[1])


def marks(name, transform, backend):
    """Every cell is checked by `make gates`. The reference is plain PyTorch, as is that learner, and what kernels leave to it is in
    their own cells."""
    if name == "MahalanobisNet" or (backend == "reference" and transform not in ON_EVERY_BACKEND):
        return [pytest.mark.gate]
    place = SUBJECTS.index(name)
    turn = IN_TURN[place // 2 % len(IN_TURN)] if place % 2 == 0 else None
    whole = COMPILED[0] if transform == SECOND_OF_COMPILED else transform  # they share a compilation
    return [pytest.mark.gate] if whole in IN_TURN and whole != turn else []


@pytest.mark.parametrize(
    ("name", "transform", "backend"),
    [pytest.param(*cell, backend, marks=marks(*cell, backend)) for cell in CELLS for backend in backends(*cell)],
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

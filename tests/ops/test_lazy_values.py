"""Tensors whose memory is not their value: what torch negates, conjugates or fills with zeros later, and those that have none."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastmeta
from fastmeta import _C, _ext, _memory
from harness.cases import EVERYWHERE, case
from harness.compare import outputs

everywhere = pytest.mark.parametrize(("op", "backend"), EVERYWHERE, indirect=["backend"])
VIEWS = {
    "imaginary part of a conjugate": lambda x: torch.complex(torch.zeros_like(x), -x).conj().imag,
    "contiguous": lambda x: torch._neg_view(-x),
    "transposed": lambda x: torch._neg_view(-x.mT.contiguous()).mT if x.ndim > 1 else torch._neg_view(-x),
}


def values_and_grads(c, view, of_cotangent):
    leaves = [t.detach().clone().requires_grad_() for t in c.tensors]
    found = outputs(c.fn(*map(view, leaves)))
    torch.manual_seed(1)
    cotangents = [of_cotangent(torch.randn(y.shape, dtype=y.dtype)) for y in found]
    grads = torch.autograd.grad(found, leaves, cotangents, allow_unused=True, materialize_grads=True)
    return [t.detach() for t in (*found, *grads)]


def same(x):
    return x


@pytest.mark.parametrize(  # all of a kernel that reads memory as it lies, of another one in turn
    ("op", "backend", "view"),
    [(*x, view) for i, x in enumerate(EVERYWHERE) for j, view in enumerate(VIEWS) if x[1] == "ext" or i % 3 == j],
    indirect=["backend"],
)
def test_negated(op, backend, view):
    c, view = case(op), VIEWS[view]
    assert view(c.tensors[0]).is_neg()
    torch.testing.assert_close(values_and_grads(c, view, view), values_and_grads(c, same, same))
    with torch.no_grad():
        torch.testing.assert_close(outputs(c.fn(*map(view, c.tensors))), outputs(c.fn(*c.tensors)))


@everywhere
def test_zeros(op, backend):
    """As forward-mode AD makes them."""
    c = case(op)
    zero = torch._efficientzerotensor(c.tensors[0].shape, dtype=torch.float64, device=c.tensors[0].device)
    with torch.no_grad():
        found = outputs(c.fn(zero, *c.tensors[1:]))
        torch.testing.assert_close(found, outputs(c.fn(torch.zeros_like(c.tensors[0]), *c.tensors[1:])))
    if op == "hvp":  # its outputs are torch's own
        return
    lazy = lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype, device=x.device)  # noqa: E731
    torch.testing.assert_close(values_and_grads(c, same, lazy), values_and_grads(c, same, torch.zeros_like))


@pytest.mark.parametrize(
    ("op", "backend", "inside"),
    [
        ("proto_loss", "auto", True), ("proto_loss", "reference", False), ("sgd_step", "auto", False),
        ("sgd_step", "reference", True), ("mlp_meta_loss", "auto", True), ("mlp_meta_loss", "auto", False),
    ], indirect=["backend"],
)  # fmt: skip
def test_compiled(op, backend, inside):
    """Negated in what is compiled, or given to it."""
    torch._dynamo.reset()
    c, view = case(op), VIEWS["imaginary part of a conjugate"]
    each = view if inside else same
    fn = torch.compile(lambda *t: outputs(c.fn(*map(each, t))), fullgraph=True, backend="aot_eager")

    def found(fn, view):
        leaves = [view(x).detach().requires_grad_() for x in c.tensors]
        outs = fn(*leaves)
        return outs, torch.autograd.grad(outs, leaves, [view(torch.ones_like(y)) for y in outs])

    torch.testing.assert_close(
        found(fn, same if inside else view), found(lambda *t: outputs(c.fn(*map(each, t))), same)
    )


@pytest.mark.cpu
def test_labels():
    view = VIEWS["contiguous"]
    x, y = torch.randn(2, 6, 3), torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)
    centres = fastmeta.prototypes(x, view(y), 3)
    torch.testing.assert_close(centres, fastmeta.prototypes(x, y, 3))
    torch.testing.assert_close(fastmeta.proto_loss(x, centres, view(y)), fastmeta.proto_loss(x, centres, y))
    with pytest.raises(ValueError, match=r"targets must be in \[0, 3\) or ignore_index=-100, got -1"):
        fastmeta.proto_loss(x, centres, view(-y))


@pytest.mark.cpu
@pytest.mark.parametrize("kind", ["mlp", "convolutional", "any"])
def test_learners(kind):
    shape = (1, 4, 4) if kind == "convolutional" else (16,)
    layers = {
        "mlp": [torch.nn.Linear(16, 3)],
        "convolutional": [torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32, 3)],
        "any": [torch.nn.Linear(16, 3), torch.nn.Softplus()],
    }  # fmt: skip
    learner = fastmeta.MAML(torch.nn.Sequential(*layers[kind]), lr=0.1, steps=2)
    x, y, view = torch.randn(2, 6, *shape), torch.tensor([[0, 1, 2, 0, 1, 2]] * 2), VIEWS["contiguous"]
    found = []
    for of in (view, same):
        learner.zero_grad()
        loss = learner.loss(of(x), of(y), of(x), of(y))
        loss.sum().backward()
        found.append([loss, *(p.grad for p in learner.parameters())])
    torch.testing.assert_close(*found)


def test_without_the_places_of_the_keys():
    """On a torch that keeps a tensor's keys elsewhere, all tensors are asked."""
    _C.init_values(_memory.in_memory, -1, -1, 0)
    try:
        with fastmeta.backend("ext" if "ext" in dict(EVERYWHERE).values() else "auto"):
            for op in ("proto_loss", "sgd_step", "mlp_meta_loss"):
                test_negated(op, "ext", "contiguous")
    finally:
        _C.init_values(_memory.in_memory, *_memory.key_places())


def test_the_places_of_the_keys_are_found():
    """Else all calls are slower, without a word."""
    impl, keys, plain = _memory.key_places()
    assert impl >= 0 and keys >= 0 and plain
    assert _ext.key_places is _memory.key_places


class Elsewhere(torch.Tensor):
    """A subclass without memory."""

    @staticmethod
    def __new__(cls, x):
        return torch.Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype, device=x.device)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(func)


class Own(torch.Tensor):
    """A subclass with memory, of which only it knows what it means."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(func)


@pytest.mark.cpu
def test_subclasses_of_their_own_kind_are_refused():
    x = torch.ones(2, 3)
    with FakeTensorMode():
        fake = torch.ones(2, 3)
    for wrapped in (Elsewhere(x), x.as_subclass(Own), fake):
        with pytest.raises(TypeError, match="sgd_step: grads must be a tensor with memory of its own, got "):
            fastmeta.sgd_step(x, wrapped, 0.1)


@pytest.mark.cpu
def test_tensors_that_are_not_dense_are_refused():
    x = torch.ones(2, 3)
    others = {
        "torch.sparse_coo": x.to_sparse(), "torch.sparse_csr": x.to_sparse_csr(), "torch._mkldnn": x.to_mkldnn(),
        "a nested one": torch.nested.nested_tensor([x, x]),
    }  # fmt: skip
    for kind, other in others.items():
        for name in ("auto", "reference"):
            with fastmeta.backend(name), pytest.raises(TypeError, match=f"must be a dense tensor, got {kind}"):
                fastmeta.proto_log_softmax(other, x)
    with pytest.raises(TypeError, match="prototypes: labels must be a dense tensor, got torch.sparse_coo"):
        fastmeta.prototypes(x, torch.tensor([0, 1]).to_sparse(), 2)


@pytest.mark.cpu
def test_meta_tensors():
    """Shapes alone, from the reference."""
    x, y = torch.ones(2, 4, 3, device="meta"), torch.ones(2, 4, device="meta", dtype=torch.int64)
    assert fastmeta.prototypes(x, y, 2).shape == (2, 2, 3)
    assert fastmeta.matching_log_probs(x, x, y, 2).shape == (2, 4, 2)
    assert fastmeta.mlp_loss([torch.ones(2, 3, device="meta"), None], x, y).shape == (2,)
    with pytest.raises(
        ValueError, match="prototypes: labels must be on the device of the other tensors, cpu, got meta"
    ):
        fastmeta.prototypes(torch.ones(2, 4, 3), y, 2)


@pytest.mark.cpu
@pytest.mark.parametrize("lazily", [torch.inference_mode, torch.no_grad])
def test_expanded_tensors(lazily):
    """Stride 0: the outputs have memory of their own all the same."""
    with lazily():
        x, g = torch.ones(1, 1).expand(3, 4), torch.ones(1, 4).expand(3, 4)
        found = fastmeta.sgd_step(x, g, 0.5)
    assert found.is_contiguous() and torch.equal(found, torch.full((3, 4), 0.5))

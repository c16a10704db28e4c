"""Each loss of fastmeta.heads: value and gradients of its paper's formula, in float64; float32 near it; errors in its own name."""

import functools

import pytest
import torch
from torch import nn

import fastmeta
from fastmeta import heads
from harness import head_formulas as formulas
from harness.cases import randn
from harness.compare import values_and_grads

pytestmark = pytest.mark.cpu
LABELS = torch.tensor([3, 7, 3, 3, -2, 7, 7, 5, 3, 7, 7, 5, 0, 7])  # -2 and 0 are alone
VOICES = (5, 4, 6)


def speakers(made, formula):
    return made(init_w=3.0, init_b=-1.0), lambda x: formula(x, 3.0, -1.0), [VOICES], ()


def with_proxies(made, formula, *numbers):
    head = made(6, 8, *numbers).double()
    labels = torch.tensor([0, 5, 2, 2, 1, 5, 5])
    return head, lambda x: formula(x, head.weight.detach(), labels, *numbers), [(7, 8)], (labels,)


def of_labels(made, formula):
    return made(0.3), lambda x: formula(x, LABELS, 0.3), [(len(LABELS), 5)], (LABELS,)


def of_pairs(made, formula, **options):
    return made(0.2), lambda x, y: formula(x, y, 0.2), [(6, 5), (6, 5)], ()


CASES = {
    "GE2E": functools.partial(speakers, heads.GE2E, formulas.ge2e),
    "AngleProto": functools.partial(speakers, heads.AngleProto, formulas.angle_proto),
    "InfoNCE": functools.partial(of_pairs, heads.InfoNCE, formulas.info_nce),
    "NTXent": functools.partial(of_pairs, heads.NTXent, formulas.nt_xent),
    "CLIPLoss": lambda: (heads.CLIPLoss(), lambda x, y: formulas.clip(x, y, 1 / 0.07), [(6, 5), (6, 5)], ()),
    "SupCon": functools.partial(of_labels, heads.SupCon, formulas.sup_con),
    "NCA": functools.partial(of_labels, heads.NCA, formulas.nca),
    "ProxyNCA": functools.partial(with_proxies, heads.ProxyNCA, formulas.proxy_nca, 0.5),
    "CosFace": functools.partial(with_proxies, heads.CosFace, formulas.cos_face, 0.35, 16.0),
    "ArcFace": functools.partial(with_proxies, heads.ArcFace, formulas.arc_face, 0.5, 16.0),
    "ArcFace beyond pi": functools.partial(with_proxies, heads.ArcFace, formulas.arc_face, 2.5, 4.0),
}


@pytest.mark.parametrize("name", CASES)
def test_is_its_formula(name):
    head, formula, shapes, labels = CASES[name]()
    tensors = [randn(*shape) for shape in shapes]
    truth = values_and_grads(formula, tensors)
    torch.testing.assert_close(values_and_grads(lambda *x: head(*x, *labels), tensors), truth, rtol=1e-10, atol=1e-12)
    narrow = values_and_grads(lambda *x: head.float()(*x, *labels), [x.float() for x in tensors])
    torch.testing.assert_close(narrow, [x.float() for x in truth], rtol=1e-4, atol=1e-6)
    assert torch.autograd.gradgradcheck(lambda *x: head.double()(*x, *labels), [x.requires_grad_() for x in tensors])


@pytest.mark.parametrize(("made", "formula"), [(heads.GE2E, formulas.ge2e), (heads.AngleProto, formulas.angle_proto)])
def test_w_and_b_are_learned(made, formula):
    x, w, b = randn(*VOICES), randn().abs().requires_grad_(), randn().requires_grad_()
    head = made().double()
    with torch.no_grad():
        head.w.copy_(w), head.b.copy_(b)
    found = torch.autograd.grad(head(x), [head.w, head.b])
    torch.testing.assert_close(found, torch.autograd.grad(formula(x, w, b), [w, b]))


def test_proxies_and_the_scale_of_clip_are_learned():
    x, labels = randn(5, 4), torch.tensor([1, 0, 2, 2, 1])
    for name, formula in (("CosFace", formulas.cos_face), ("ArcFace", formulas.arc_face)):
        head = getattr(heads, name)(3, 4, 0.3, 8.0).double()
        truth = values_and_grads(lambda w, formula=formula: formula(x, w, labels, 0.3, 8.0), [head.weight])[1]
        torch.testing.assert_close(torch.autograd.grad(head(x, labels), head.weight)[0], truth)
    scale = torch.tensor(2.0, dtype=x.dtype)
    found = values_and_grads(lambda s: heads.CLIPLoss()(x, x.flip(1), s.exp()), [scale])
    torch.testing.assert_close(found, values_and_grads(lambda s: formulas.clip(x, x.flip(1), s.exp()), [scale]))


@pytest.mark.parametrize("name", ["SupCon", "NCA", "ArcFace", "GE2E"])
def test_autocast_and_bfloat16(name):
    head, _, shapes, labels = CASES[name]()
    x = randn(*shapes[0], dtype=torch.bfloat16)
    exact = head.float()(x.float(), *labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(x, *labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(head.bfloat16()(x, *labels).float(), exact, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("name", CASES)
def test_meta_device(name):
    head, _, shapes, labels = CASES[name]()
    x = [torch.empty(*shape, dtype=torch.float64, device="meta", requires_grad=True) for shape in shapes]
    loss = head.to("meta")(*x, *(y.to("meta") for y in labels))
    loss.backward()
    assert loss.shape == () and loss.is_meta and x[0].grad.shape == shapes[0]


def test_nobody_has_a_positive():
    x = randn(3, 4).requires_grad_()
    for head in (heads.SupCon(), heads.NCA()):
        loss = head(x, torch.arange(3))
        assert loss == 0 and torch.autograd.grad(loss, x)[0].count_nonzero() == 0


def test_compile_vmap_and_many_embeddings():
    """Many: products inside, where the example itself, which does not count, is the nearest by far."""
    z, labels = randn(130, 70), torch.randint(0, 9, (130,))
    head = heads.SupCon(0.1)
    truth = values_and_grads(lambda z: formulas.sup_con(z, labels, 0.1), [z])
    torch.testing.assert_close(values_and_grads(lambda z: head(z, labels), [z]), truth)
    torch._dynamo.reset()
    ours = torch.compile(head, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(values_and_grads(lambda z: ours(z, labels), [z]), truth)
    views = randn(3, 2, 6, 5)
    in_turn = torch.stack([heads.NTXent()(*pair) for pair in views])
    torch.testing.assert_close(torch.vmap(lambda pair: heads.NTXent()(pair[0], pair[1]))(views), in_turn)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, y: heads.GE2E()(x), ValueError, r"GE2E: embeddings must have 3 dimensions, got shape \[4, 3\]"),
        (lambda x, y: heads.GE2E()(x[:, None]), ValueError, "GE2E: embeddings must hold two utterances of each speaker"),
        (lambda x, y: heads.InfoNCE(-1.0), ValueError, "InfoNCE: temperature must be positive and finite, got -1.0"),
        (lambda x, y: heads.InfoNCE()(x, x[:2]), ValueError, "InfoNCE: keys must hold a row for each query"),
        (lambda x, y: heads.NTXent()(x, x[:2]), ValueError, r"NTXent: z2 must have the shape of z1, \[4, 3\], got \[2, 3\]"),
        (lambda x, y: heads.SupCon()(x, y[:2]), ValueError, r"SupCon: labels must have shape \[4\], got \[2\]"),
        (lambda x, y: heads.NCA()(x, y.int()), TypeError, "NCA: labels must be int64 class indices, got torch.int32"),
        (lambda x, y: heads.ArcFace(2, 3)(x, y), ValueError, r"ArcFace: labels must be in \[0, 2\), got 2"),
        (lambda x, y: heads.ArcFace(2, 3, margin=4.0), ValueError, r"ArcFace: margin must be in \[0, pi\], got 4.0"),
        (lambda x, y: heads.CosFace(9, 2)(x, y), ValueError, r"CosFace: embeddings must have 2 features"),
        (lambda x, y: heads.CosFace(9, 3)(x.double(), y), TypeError, "CosFace: weight must have the dtype of embeddings"),
        (lambda x, y: heads.CLIPLoss()(x, x, torch.tensor(-1.0)), ValueError, "CLIPLoss: temperature must be positive"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(4, 3), torch.tensor([0, 2, 1, 1]))


def test_every_head_is_a_documented_module():
    for name in heads.__all__:
        made = getattr(heads, name)
        assert issubclass(made, nn.Module) and "Source" in made.__doc__ and "Error" in made.__doc__, name
    assert fastmeta.heads is heads

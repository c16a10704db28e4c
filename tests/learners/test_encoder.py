"""Encoders on the conv kernels: features, gradients and running statistics are those of the module itself."""

import copy
import pickle

import pytest
import torch
from torch import nn

import fastmeta
from harness.any_module import Unknown

D = torch.float64
NORMS = {
    "running": lambda c: [nn.BatchNorm2d(c)],
    "of the batch": lambda c: [nn.BatchNorm2d(c, track_running_stats=False, eps=0.1)],
    "without affine": lambda c: [nn.BatchNorm2d(c, affine=False, momentum=None)],
    "of groups": lambda c: [nn.GroupNorm(2, c)],
    "none": lambda c: [],
}


def encoder(norm="running", *, flat=True, bias=True, stride=1, padding=1):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, padding=1, bias=bias), *NORMS[norm](4), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Sequential(nn.Conv2d(4, 6, 3, stride, padding), *NORMS[norm](6))]
    for m in layers[1::4]:
        if getattr(m, "weight", None) is not None and isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, -1, 1)
    return nn.Sequential(*layers, *([nn.Flatten()] if flat else [])).to(D)


def episode(tasks=3, side=9):
    torch.manual_seed(1)
    y, z = torch.arange(4).remainder(2).expand(tasks, 4), torch.arange(6).remainder(2).expand(tasks, 6)
    return torch.randn(tasks, 4, 2, side, side, dtype=D), y, torch.randn(tasks, 6, 2, side, side, dtype=D), z


def protonet(module):
    return fastmeta.ProtoNet(module, num_classes=2)


def state(module):
    return {name: x.clone() for name, x in module.state_dict().items()}


@pytest.fixture
def native(monkeypatch):
    """How often the kernels have run an encoder."""
    from fastmeta.networks import encoder as file

    calls, plain = [], file.Encoder._natively

    def counted(self, x):
        found = plain(self, x)
        if found is not None:
            calls.append(x.shape)
        return found

    monkeypatch.setattr(file.Encoder, "_natively", counted)
    return calls


def check(make, data, native, runs=True, rounds=2):
    """A learner of `make(module)` on the kernels, and on the module itself."""
    learner, plain = make(lambda m: m), make(Unknown)
    for k in range(rounds):
        if k:
            learner.eval(), plain.eval()
        losses = [each.loss(*data) for each in (learner, plain)]
        torch.testing.assert_close(*losses)
        for each, loss in zip((learner, plain), losses, strict=True):
            each.zero_grad()
            (loss * torch.arange(1.0, 1 + len(loss), dtype=D)).sum().backward()
        for of in (lambda each: {n: p.grad for n, p in each.named_parameters()}, lambda each: each.state_dict()):
            torch.testing.assert_close(
                *({n.replace(".model.", "."): x for n, x in of(e).items()} for e in (learner, plain))
            )
    assert bool(native) == runs


@pytest.mark.cpu
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("options", [{}, {"flat": False, "bias": False}, {"stride": 2, "padding": 2}], ids=str)
def test_protonet(norm, options, native):
    check(lambda wrap: protonet(wrap(encoder(norm, **options))), episode(), native)


@pytest.mark.cpu
@pytest.mark.parametrize("norm", NORMS)
def test_other_learners(norm, native):
    data = episode()
    check(lambda wrap: fastmeta.MatchingNet(wrap(encoder(norm)), num_classes=2), data, native)
    head = lambda: (torch.manual_seed(3), nn.Linear(6 * 16, 2).to(D))[1]  # noqa: E731
    check(lambda wrap: fastmeta.ANIL(wrap(encoder(norm)), head(), 0.1, 2), data, native)
    if norm == "of the batch":
        check(lambda wrap: fastmeta.ProtoMAML(wrap(encoder(norm)), 2, 0.01, 1), data, native, rounds=1)


@pytest.mark.cpu
def test_second_derivatives():
    data = episode(tasks=1)
    found = []
    for wrap in (lambda m: m, Unknown):
        learner = protonet(wrap(encoder("of the batch")))
        params = list(learner.parameters())
        slopes = torch.autograd.grad(learner.loss(*data).sum(), params, create_graph=True)
        found.append(torch.autograd.grad(sum(s.square().sum() for s in slopes), params))
    torch.testing.assert_close(*found)


@pytest.mark.cpu
def test_a_graph_may_be_used_twice_and_images_have_gradients(native):
    data = episode()
    data[0].requires_grad_()
    learner = protonet(encoder())
    loss = learner.loss(*data).sum()
    leaves = [data[0], *learner.parameters()]
    first, again = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    expected = torch.autograd.grad(protonet(Unknown(encoder())).loss(*data).sum(), [data[0]])
    torch.testing.assert_close(first[:1], expected)
    assert native


@pytest.mark.cpu
def test_what_is_seen_of_the_encoder(native):
    data = episode()
    learner = protonet(encoder("of the batch"))
    learner.loss(*data)
    assert len(native) == 1
    for copied in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        torch.testing.assert_close(copied.loss(*data), learner.loss(*data))
    native.clear()
    seen = []
    handle = learner.encoder[0].register_forward_hook(lambda *_: seen.append(1))
    learner.loss(*data)
    assert seen and not native
    handle.remove()
    learner.loss(*data)
    assert native
    native.clear()
    learner.encoder[2] = nn.Tanh()
    expected = protonet(Unknown(learner.encoder)).loss(*data)
    torch.testing.assert_close(learner.loss(*data), expected)
    assert not native
    learner.encoder[2] = nn.ReLU()
    learner.encoder[0].weight = nn.Parameter(torch.randn(4, 2, 3, 3, dtype=D))
    torch.testing.assert_close(learner.loss(*data), protonet(Unknown(learner.encoder)).loss(*data))


@pytest.mark.cpu
def test_frozen_layers_and_parameters_that_stand_in():
    data = episode()
    learner = protonet(encoder())
    learner.encoder[0].requires_grad_(False)
    learner.loss(*data).sum().backward()
    assert learner.encoder[0].weight.grad is None and learner.encoder[4][0].weight.grad is not None
    values = {name: 2 * p.detach() for name, p in learner.named_parameters()}
    for p in learner.parameters():
        p.requires_grad_(True)
    buffers = dict(learner.named_buffers())
    found = torch.func.functional_call(learner, values | {n: b.clone() for n, b in buffers.items()}, data)
    plain = protonet(Unknown(encoder()))
    plain.load_state_dict({n.replace("encoder.", "encoder.model."): x for n, x in (values | buffers).items()})
    torch.testing.assert_close(found, plain.loss(*data))


@pytest.mark.cpu
def test_what_the_kernels_do_not_take():
    data = [x.float() if x.is_floating_point() else x for x in episode()]
    learner = protonet(encoder("of the batch").float())
    plain = protonet(Unknown(copy.deepcopy(learner.encoder)))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(learner.loss(*data), plain.loss(*data))
    torch.testing.assert_close(torch.vmap(learner.loss)(*(x[None] for x in data))[0], plain.loss(*data))
    with pytest.raises(RuntimeError, match="channels"):
        learner.loss(data[0][:, :, :1], data[1], data[2][:, :, :1], data[3])
    with fastmeta.backend("reference"):
        torch.testing.assert_close(learner.loss(*data), plain.loss(*data))


@pytest.mark.cpu
def test_evaluation_leaves_statistics_alone():
    data = episode()
    learner = protonet(encoder())
    learner.loss(*data)
    before = state(learner)
    learner.eval()
    with torch.no_grad():
        one = learner(*data[:3])
        other = learner(*(x.flip(0) for x in data[:3])).flip(0)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(state(learner), before, rtol=0, atol=0)


@pytest.mark.cpu
@pytest.mark.parametrize("norm", [[], [nn.BatchNorm3d(3)]], ids=["plain", "batch norm"])
def test_videos(norm):
    """Their batches have as many axes as tasks of images."""
    torch.manual_seed(5)
    encoder = nn.Sequential(nn.Conv3d(2, 3, 3, padding=1), *norm, nn.ReLU(), nn.Flatten()).to(D)
    y, x = torch.arange(4).remainder(2).expand(3, 4), torch.randn(3, 4, 2, 2, 5, 5, dtype=D)
    features = encoder(torch.cat([x, x], 1).flatten(0, 1)).unflatten(0, (3, 8))
    centres = torch.stack([features[:, :4][y == k].unflatten(0, (3, 2)).mean(1) for k in range(2)], 1)
    log_probs = (-torch.cdist(features[:, 4:], centres)).log_softmax(-1)
    expected = -log_probs.gather(-1, y[..., None]).mean((1, 2))
    torch.testing.assert_close(protonet(encoder).loss(x, y, x, y), expected)
    head = nn.Linear(150, 2).to(D)
    found = fastmeta.ANIL(encoder, head, 0.1, 0)(x, y, x)
    each = [encoder(torch.cat([task, task]))[4:] for task in x]
    torch.testing.assert_close(found, head(torch.stack(each)))

"""A learner's network changed after it was made, and networks that no kernel must take for what their layers say: against plain loops."""

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune
from torch.nn.utils.parametrize import register_parametrization

import fastmeta
from harness.any_module import general
from harness.engine import kernels_of
from harness.plain_loops import D, episode, mlp, same_as_the_plain_loop, same_gradients


def convnet():
    torch.manual_seed(4)
    norm = nn.GroupNorm(1, 4)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3)).to(D)


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


class Louder(nn.Linear):
    def __call__(self, x):
        return 3 * super().__call__(x)


def patch(layer):
    before = layer.forward
    layer.forward = lambda x: 2 * before(x)


def hook(layer, register, function):
    getattr(layer, register)(function)


CHANGES = {
    "another head": lambda m: m.__setitem__(-1, nn.Linear(6, 3).to(D)),
    "another activation": lambda m: m.__setitem__(1, nn.Tanh()),
    "both activations": lambda m: (m.__setitem__(1, nn.Tanh()), m.__setitem__(3, nn.Tanh())),
    "an activation's option": lambda m: setattr(m[1], "approximate", "tanh"),
    "another layer": lambda m: m.append(nn.Linear(3, 3).to(D)),
    "a layer less": lambda m: (m.pop(2), m.pop(2)),
    "a forward hook": lambda m: hook(m[0], "register_forward_hook", lambda m, x, y: 2 * y),
    "a forward pre-hook": lambda m: hook(m[2], "register_forward_pre_hook", lambda m, x: 2 * x[0]),
    "a hook of the whole": lambda m: hook(m, "register_forward_hook", lambda m, x, y: 2 * y),
    "a backward hook": lambda m: hook(m[2], "register_full_backward_hook", lambda m, g, of: (2 * g[0],)),
    "a backward pre-hook": lambda m: hook(m[2], "register_full_backward_pre_hook", lambda m, g: (2 * g[0],)),
    "a tied weight": lambda m: setattr(m[2], "weight", m[0].weight),
    "a parametrization": lambda m: register_parametrization(m[0], "weight", Twice()),
    "a weight from a hook": lambda m: nn.utils.weight_norm(m[0]),
    "a pruned weight": lambda m: prune.l1_unstructured(m[0], "weight", 0.5),
    "no bias": lambda m: setattr(m[0], "bias", None),
    "a frozen layer": lambda m: m[0].requires_grad_(False),
    "a frozen bias": lambda m: m[4].bias.requires_grad_(False),
    "a patched forward": lambda m: patch(m[0]),
    "a patched activation": lambda m: patch(m[1]),
    "a subclass": lambda m: m.__setitem__(2, Louder(6, 6).to(D)),
    "another class": lambda m: setattr(m[2], "__class__", Louder),
    "one more parameter": lambda m: setattr(m[1], "scale", nn.Parameter(torch.ones(2, dtype=D))),
    "weights in another order": lambda m: m[0]._parameters.update(weight=m[0]._parameters.pop("weight")),
}


OTHER_NAMES = (
    "another layer", "a parametrization", "one more parameter", "a layer less", "a weight from a hook", "a pruned weight",
)  # fmt: skip


def change(model, kind):
    CHANGES[kind](model)
    return model


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_maml_trains_the_model_as_it_is(kind, when):
    data, learner = episode(), fastmeta.MAML(change(mlp(), kind) if when == "before" else mlp(), 0.1, 2)
    if when == "after":
        assert kernels_of(learner) == "mlp"
        before = learner.loss(*data)
        change(learner.model, kind)
        if "order" not in kind and "from a hook" not in kind and "frozen" not in kind and "more" not in kind:
            assert not torch.equal(learner.loss(*data), before)
    same_as_the_plain_loop(learner, data)


@pytest.mark.parametrize("kind", CHANGES)
def test_meta_sgd_keeps_the_rates_of_the_names(kind):
    learner, data = fastmeta.MetaSGD(mlp(), 0.1, 1), episode()
    with torch.no_grad():
        for i, rate in enumerate(learner.alpha):
            rate.fill_(0.05 * (i + 1))
    names = learner.adapted
    learner.loss(*data)
    change(learner.model, kind)
    if kind in OTHER_NAMES:
        with pytest.raises(ValueError, match=r"MetaSGD: (there must be a rate for each|lr\[2\] must have shape)"):
            learner.loss(*data)
        return
    by_hand = general(learner)
    by_hand._rated = [f"model.{name}" for name in names]
    same_gradients(learner.loss(*data), by_hand.loss(*data), [p for p in learner.parameters() if p.requires_grad])


OTHERS = {
    "Reptile": lambda model: fastmeta.Reptile(model, 0.1, 2),
    "IMAML": lambda model: fastmeta.IMAML(model, 0.1, 3),
    "ANIL": lambda model: fastmeta.ANIL(nn.Linear(6, 6).to(D), model, 0.1, 2),
    "ProtoMAML": lambda model: fastmeta.ProtoMAML(model, 3, 0.1, 2),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    "kind", ["another head", "another activation", "a forward hook", "a frozen layer", "a patched forward"]
)
def test_the_others_too(name, kind):
    torch.manual_seed(1)
    learner, data = OTHERS[name](mlp()), [*episode()]
    data[1] = torch.arange(3).repeat(4, 2)  # of every class
    before = learner.loss(*data)
    model = learner.encoder if name == "ProtoMAML" else learner.model
    change(model, kind)
    losses, expected = learner.loss(*data), general(learner).loss(*data)
    assert kind == "a frozen layer" or not torch.allclose(losses, before)
    same_gradients(losses, expected, [p for p in learner.parameters() if p.requires_grad])


def of_one_layer_twice(named_twice):
    """Two equal layers: one module under two names, or two modules whose parameters are the same, which functional_call can take."""
    torch.manual_seed(4)
    first, second = nn.Linear(6, 6).to(D), nn.Linear(6, 6).to(D)
    second.weight, second.bias = first.weight, first.bias
    return nn.Sequential(first, nn.GELU(), first if named_twice else second, nn.GELU(), nn.Linear(6, 3).to(D))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_module_of_two_names_keeps_its_parameters(backend):
    data, model = episode(), of_one_layer_twice(True)
    before = [*model.parameters()]
    learner, tied = fastmeta.MAML(model, 0.1, 2), fastmeta.MAML(of_one_layer_twice(False), 0.1, 2)
    with fastmeta.backend(backend):
        same_as_the_plain_loop(tied, data)
        found, expected = [], []
        for of, into in ((learner, found), (tied, expected)):
            losses = of.loss(*data)
            into += [losses, *torch.autograd.grad(losses.sum(), [*of.parameters()])]
        fastmeta.unroll((model, "cross_entropy"), model, (data[0][0], data[1][0]), steps=2, optimiser=fastmeta.SGD(0.1))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert all(p is q for p, q in zip(model.parameters(), before, strict=True))


def test_convolutions_too():
    learner, data = fastmeta.MAML(convnet(), 0.1, 2), episode(shape=(1, 3, 3))
    assert kernels_of(learner) == "conv"
    for changed in (
        lambda m: m.__setitem__(-1, nn.Linear(36, 3).to(D)),
        lambda m: setattr(m[1], "eps", 0.5),
        lambda m: setattr(m[0], "padding_mode", "circular"),
        lambda m: hook(m[1], "register_forward_hook", lambda m, x, y: 2 * y),
        lambda m: m[0].requires_grad_(False),
    ):
        before = learner.loss(*data)
        changed(learner.model)
        assert not torch.allclose(learner.loss(*data), before)
        same_as_the_plain_loop(learner, data)


def test_global_hooks_are_honoured_and_see_the_users_modules_alone():
    learner, data, seen = fastmeta.MAML(mlp(), 0.1, 2), episode(), set()

    def louder(module, inputs, output):
        seen.add(type(module))
        return 2 * output if isinstance(module, nn.Linear) else None

    quiet = learner.loss(*data)
    handle = register_module_forward_hook(louder)
    try:
        same_as_the_plain_loop(learner, data)
    finally:
        handle.remove()
    assert seen == {nn.Sequential, nn.Linear, nn.GELU, fastmeta.MAML}
    torch.testing.assert_close(learner.loss(*data), quiet, rtol=0, atol=0)


def test_a_patched_class_is_honoured(monkeypatch):
    learner, data = fastmeta.MAML(mlp(), 0.1, 2), episode()
    learner.loss(*data)
    monkeypatch.setattr(nn.GELU, "forward", lambda self, x: x.sin())
    same_as_the_plain_loop(learner, data)


def test_running_statistics_switched_on_later():
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = convnet()
    model[1] = norm.to(D)
    learner, data = fastmeta.MAML(model, 0.1, 1), episode(shape=(1, 3, 3))
    learner.loss(*data)
    for on in (
        lambda: setattr(norm, "track_running_stats", True),
        lambda: setattr(norm, "running_mean", torch.zeros(4)),
    ):
        on()
        with pytest.raises(ValueError, match="MAML: batch norm must use the statistics of each batch, got running"):
            learner.loss(*data)
        fastmeta.use_batch_statistics(model)
        learner.loss(*data)

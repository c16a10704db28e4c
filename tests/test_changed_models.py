"""A learner's network changed after it was made, and networks that no kernel must take for what their layers say: against plain loops."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from learner_cases import Unknown, general
from test_engine import D, plain_losses, same_gradients
from torch import nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune
from torch.nn.utils.parametrize import register_parametrization

import fastmeta

T = 3
WEIGHTS = torch.tensor([1.0, -0.5, 2.0], dtype=D)


def mlp():
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 3)).to(D)


def convnet():
    torch.manual_seed(4)
    norm = nn.GroupNorm(1, 4)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3)).to(D)


def episode(images=False, tasks=T):
    def draw(n):
        return (
            torch.randn(tasks, n, *((1, 3, 3) if images else (6,)), dtype=D),
            torch.arange(3).repeat(2)[:n].expand(tasks, n),
        )

    return (*draw(5), *draw(6))


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


def change(model, kind):
    CHANGES[kind](model)
    return model


def same_as_the_plain_loop(learner, data):
    inputs = [p for p in learner.parameters() if p.requires_grad]
    same_gradients(learner.loss(*data), plain_losses(learner, *data), inputs, WEIGHTS)
    outputs = learner(*data[:3])
    of_outputs = torch.stack([F.cross_entropy(o, y) for o, y in zip(outputs, data[3], strict=True)])
    same_gradients(of_outputs, plain_losses(learner, *data), inputs, WEIGHTS)


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_maml_trains_the_model_as_it_is(kind, when):
    data, learner = episode(), fastmeta.MAML(change(mlp(), kind) if when == "before" else mlp(), 0.1, 2)
    if when == "after":
        assert learner._plan().mlp is not None
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
    if kind in (
        "another layer",
        "a parametrization",
        "one more parameter",
        "a layer less",
        "a weight from a hook",
        "a pruned weight",
    ):
        with pytest.raises(ValueError, match=r"MetaSGD: (there must be a rate for each|lr\[2\] must have shape)"):
            learner.loss(*data)
        return
    by_hand = general(learner)
    by_hand._rated = [f"model.{name}" for name in names]
    losses, expected = learner.loss(*data), by_hand.loss(*data)
    same_gradients(losses, expected, [p for p in learner.parameters() if p.requires_grad], WEIGHTS)


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
    learner, data = OTHERS[name](mlp()), episode()
    before = learner.loss(*data)
    model = learner.encoder if name == "ProtoMAML" else learner.model
    change(model, kind)
    losses, expected = learner.loss(*data), general(learner).loss(*data)
    assert kind == "a frozen layer" or not torch.allclose(losses, before)
    same_gradients(losses, expected, [p for p in learner.parameters() if p.requires_grad], WEIGHTS)


def test_convolutions_too():
    learner, data = fastmeta.MAML(convnet(), 0.1, 2), episode(images=True)
    assert learner._plan().net is not None
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


def test_freezing_and_unfreezing():
    learner, data = fastmeta.MAML(mlp(), 0.1, 2, adapt=["0", "4"]), episode()
    learner.model[4].requires_grad_(False)
    assert learner.adapted == ["0.weight", "0.bias"]
    same_as_the_plain_loop(learner, data)
    learner.loss(*data).sum().backward()
    assert learner.model[4].weight.grad is None and learner.model[2].weight.grad is not None
    learner.model[4].requires_grad_(True)
    assert learner.adapted == ["0.weight", "0.bias", "4.weight", "4.bias"]
    same_as_the_plain_loop(learner, data)


def test_attributes_may_be_assigned():
    learner, data = fastmeta.MAML(mlp(), 0.1, 1), episode()
    learner.model = Unknown(mlp())
    same_as_the_plain_loop(learner, data)
    learner.adapted = ["model.4"]
    assert learner.adapted == ["model.4.weight", "model.4.bias"]
    same_as_the_plain_loop(learner, data)
    learner.adapted = None
    learner.model, learner.steps, learner.lr, learner.first_order = mlp(), 3, 0.3, True
    assert learner._plan().mlp is not None
    same_as_the_plain_loop(learner, data)
    scores = lambda outputs, y: (outputs.gather(1, y[:, None]) - 1).square().mean()  # noqa: E731
    learner.inner_loss = scores
    same_gradients(learner.loss(*data), plain_losses(learner, *data, scores), list(learner.parameters()), WEIGHTS)
    learner.inner_loss = "mse"
    numbers = [x if x.is_floating_point() else torch.randn(*x.shape, 3, dtype=D) for x in data]
    truth = plain_losses(learner, *numbers, F.mse_loss)
    same_gradients(learner.loss(*numbers), truth, list(learner.parameters()), WEIGHTS)
    assert list(learner.state_dict()) == [f"model.{path}" for path in learner.model.state_dict()]
    for name, value, message in (
        ("steps", -1, "steps must be a whole number, 0 or more, got -1"),
        ("lr", "fast", "lr must be a number or a tensor, got str"),
        ("task_chunk", 0, "task_chunk must be None or a whole number, 1 or more, got 0"),
        ("inner_loss", "hinge", "loss must be 'cross_entropy', 'mse' or a function, got 'hinge'"),
        ("first_order", "no", "first_order must be True or False, got 'no'"),
    ):
        kept = getattr(learner, name)
        setattr(learner, name, value)
        with pytest.raises((ValueError, TypeError), match=f"MAML: {message}"):
            learner.loss(*numbers)
        setattr(learner, name, kept)
    learner.adapted = ["nothing"]
    with pytest.raises(ValueError, match="MAML: adapt must name parameters with requires_grad, or modules with some"):
        learner.loss(*numbers)


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
    learner, data = fastmeta.MAML(model, 0.1, 1), episode(images=True)
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


def test_copies_follow_their_own_model():
    learner, data = fastmeta.MAML(mlp(), 0.1, 2), episode()
    learner.loss(*data).sum().backward()
    for twin in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        torch.testing.assert_close(twin.loss(*data), learner.loss(*data), rtol=0, atol=0)
        twin.model[-1] = nn.Linear(6, 3).to(D)
        same_as_the_plain_loop(twin, data)
        assert not torch.allclose(twin.loss(*data), learner.loss(*data))


def test_stand_ins_keep_what_is_frozen():
    """torch.func.functional_call with tensors that require no gradient: the names that are adapted stay."""
    learner, data = fastmeta.MAML(mlp(), 0.1, 2), episode()
    learner.model[0].requires_grad_(False)
    expected = learner.loss(*data)
    params = {name: p.detach() for name, p in learner.named_parameters()}
    torch.testing.assert_close(functional_call(learner, params, data), expected.detach())
    torch.testing.assert_close(functional_call(copy.deepcopy(learner), params, data), expected.detach())
    kept = learner._kept
    functional_call(learner, params, data)
    assert learner._kept is kept  # nothing of the call is left


def test_the_way_back_needs_the_same_model():
    """Between `learner(...)` and its backward, which takes the steps again."""
    for later in (lambda m: m.__setitem__(1, nn.Tanh()), lambda m: m.eval()):
        learner, data = fastmeta.MAML(nn.Sequential(mlp(), nn.Dropout(0.1)), 0.1, 2), episode()
        outputs = learner(*data[:3])
        later(learner.model)
        with pytest.raises(RuntimeError, match="MAML: the model must stay as it is until the way back"):
            outputs.sum().backward()
    learner, data = fastmeta.MAML(Unknown(mlp()), 0.1, 2), episode()
    learner.model.register_buffer("scale", torch.ones((), dtype=D))
    state = {name: x.detach().clone().requires_grad_() for name, x in learner.state_dict().items()}
    outputs = functional_call(learner, state, data[:3])
    with pytest.raises(RuntimeError, match="MAML: the model must stay as it is until the way back"):
        outputs.sum().backward()


def test_the_plan_is_kept():
    """No new look in a training loop, and none after the parameters moved in place."""
    learner, data = fastmeta.MAML(mlp(), nn.Parameter(torch.tensor(0.1, dtype=D)), 1), episode()
    optimiser = torch.optim.Adam(learner.parameters())
    plan = learner._plan()
    for _ in range(2):
        optimiser.zero_grad()
        learner.loss(*data).mean().backward()
        optimiser.step()
        assert learner._plan() is plan

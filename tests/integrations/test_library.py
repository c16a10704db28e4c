"""What the integrations lack comes from the installed library, and runs with what they have."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.integrations import _library, easyfsl, higher, learn2learn, torchopt
from fastmeta.integrations.easyfsl.samplers import _mended
from harness.installed_peers import peer
from harness.programs import net, waves

STEPS = 3


def test_names_of_the_library(monkeypatch):
    peer("learn2learn"), peer("higher"), peer("torchopt")
    from fastmeta.integrations.higher.patch import make_functional
    from fastmeta.integrations.learn2learn.data.transforms import NWays
    from fastmeta.integrations.torchopt.optim.func import FuncOptimizer

    assert NWays is learn2learn.data.transforms.NWays and learn2learn.nn.misc.Scale is not learn2learn.nn.Scale
    assert make_functional is higher.patch.make_functional and FuncOptimizer is torchopt.FuncOptimizer
    assert higher.optim.DifferentiableRprop is higher.optim.DifferentiableRprop
    assert learn2learn.algorithms.MAML.__module__.startswith("fastmeta")  # what is here stays ours
    for module in (learn2learn, higher, easyfsl, torchopt):
        assert not hasattr(module, "__wrapped__") and not hasattr(module, "no_such_name")

    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(_library, "load", absent)
    words = "name must be one that fastmeta.integrations has .* or the installed library, got gym .*No module named"
    with pytest.raises(AttributeError, match=f"learn2learn: the {words} 'learn2learn'"):
        learn2learn.gym  # noqa: B018
    with pytest.raises(ImportError, match="learn2learn.text: the module must be one that .* No module named"):
        from fastmeta.integrations.learn2learn import text  # noqa: F401
    with pytest.raises(
        NotImplementedError, match="MetaOptimizer: .* unless torchopt is installed, got No module named"
    ):
        torchopt.MetaOptimizer(net(), None)


@pytest.mark.parametrize("kind", ["MetaCurvatureTransform", "KroneckerTransform"])
def test_gbml(kind):
    """Its transforms start as the identity: with them GBML is MAML, and the transform gets a gradient."""
    peer("learn2learn")
    model, (x, y, query_x, query_y) = net(), (t[0] for t in waves())
    transform = getattr(learn2learn.optim, kind)
    transform = transform(learn2learn.nn.KroneckerLinear) if kind == "KroneckerTransform" else transform
    gbml = learn2learn.algorithms.GBML(model, transform, lr=0.05).double()
    losses = []
    for learner in (gbml.clone(), learn2learn.algorithms.MAML(model, lr=0.05).clone()):
        for _ in range(STEPS):
            learner.adapt(F.mse_loss(learner(x), y))
        losses.append(F.mse_loss(learner(query_x), query_y))
    torch.testing.assert_close(*losses)
    grads = [torch.autograd.grad(loss, list(model.parameters())) for loss in (losses[1], losses[0])]
    torch.testing.assert_close(*grads)
    losses = F.mse_loss((learner := gbml.clone())(x), y)
    learner.adapt(losses)
    F.mse_loss(learner(query_x), query_y).backward()
    assert all(p.grad.any() for p in gbml.compute_update.parameters())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("AdamW", {"weight_decay": 0.1, "eps": 1e-12}),
        ("RMSprop", {"momentum": 0.9}),
        ("Adagrad", {}),
        ("ASGD", {"weight_decay": 0.1}),
    ],
)
def test_optimisers_step_as_torchs(kind, options):
    if kind != "AdamW":
        peer("higher")
    model, (x, y, *_) = net(), (t[0] for t in waves())
    inner = getattr(torch.optim, kind)(model.parameters(), lr=0.01, **options)
    with higher.innerloop_ctx(model, inner) as (fmodel, diffopt):
        assert isinstance(diffopt, higher.optim.DifferentiableOptimizer)
        for _ in range(STEPS):
            diffopt.step(F.mse_loss(fmodel(x), y))
    start = list(fmodel.parameters(time=0))
    assert all(g.isfinite().all() and g.any() for g in torch.autograd.grad(fmodel(x).sum(), start))
    for _ in range(STEPS):
        inner.zero_grad()
        F.mse_loss(model(x), y).backward()
        inner.step()
    torch.testing.assert_close(list(fmodel.parameters()), list(model.parameters()), rtol=1e-6, atol=1e-6)


def test_torchopts_optimisers_on_states_of_ours():
    peer("torchopt")
    model, (x, y, *_) = net(), (t[0] for t in waves())
    schedule = torchopt.schedule.linear_schedule(0.1, 0.01, 5, 0)
    for inner in (
        torchopt.MetaRMSProp(model, 0.01),
        torchopt.MetaOptimizer(model, torchopt.chain(torchopt.sgd(0.1))),
        torchopt.MetaSGD(model, lr=schedule),
    ):
        assert isinstance(inner, torchopt.MetaOptimizer)
        start = torchopt.extract_state_dict(model), torchopt.extract_state_dict(inner)
        weight = model[0].weight
        for _ in range(2):
            inner.step(F.mse_loss(model(x), y))
        assert torch.autograd.grad(model(x).sum(), weight)[0].any()
        torchopt.recover_state_dict(model, start[0])
        torchopt.recover_state_dict(inner, start[1])
        assert model[0].weight is weight
    params = {"w": torch.ones(2, requires_grad=True)}
    optimiser = torchopt.sgd(0.1)
    updates, _ = optimiser.update({"w": params["w"] * 2}, optimiser.init(params), params=params, inplace=False)
    torch.testing.assert_close(torchopt.apply_updates(params, updates, inplace=False)["w"], torch.full((2,), 0.8))


def test_dampening_is_torchs():
    model, (x, y, *_) = net(), (t[0] for t in waves())
    options = {"lr": 0.05, "momentum": 0.9, "dampening": 0.4}
    other = net()
    inner, expected = torchopt.MetaSGD(model, **options), torch.optim.SGD(other.parameters(), **options)
    for _ in range(STEPS):
        inner.step(F.mse_loss(model(x), y))
        expected.zero_grad()
        F.mse_loss(other(x), y).backward()
        expected.step()
    torch.testing.assert_close(list(model.parameters()), list(other.parameters()))


def test_adam_at_a_gradient_of_zero():
    """p' = p - lr g / (|g| + eps) with g = c p at p = 0: dp'/dp = 1 - lr c / eps, and no NaN; with higher's eps on the scale of v."""
    c, lr, eps = 3.0, 0.1, 0.2
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    start = model.weight
    inner = torch.optim.Adam([start], lr=lr, eps=eps)
    with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (fmodel, diffopt):
        (after,) = diffopt.step(0.5 * c * fmodel.weight.square().sum())
    slope = torch.autograd.grad(after, start)[0].item()
    assert slope == pytest.approx(1 - lr * math.sqrt(1 - 0.999) * c / eps)
    torchopt.MetaAdam(model, lr=lr, eps=eps).step(0.5 * c * model.weight.square().sum())
    assert torch.autograd.grad(model.weight, start)[0].item() == pytest.approx(1 - lr * c / eps)


def test_a_sampler_that_hands_torchs_an_argument():
    class Old(torch.utils.data.Sampler):
        def __init__(self, count):
            super().__init__(data_source=None)
            self.count = count

    assert _mended(Old)(3).count == 3 and isinstance(_mended(Old)(3), Old) and _mended(Old) is _mended(Old)

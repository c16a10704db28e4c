"""TorchOpt's names one by one: states, copies, optimisers, and errors."""

import pytest
import torch
from torch import nn

from fastmeta.integrations import accelerate
from fastmeta.integrations import torchopt as ours
from harness.installed_peers import peer
from harness.programs import net, size_fixture  # noqa: F401  (a fixture)


def test_accelerated_momentum_is_the_peers_own():
    torchopt = peer("torchopt")

    def adapted():
        model = net()
        inner = torchopt.MetaSGD(model, lr=0.05, momentum=0.9)
        for _ in range(3):
            inner.step(model(torch.ones(2, 1).double()).square().sum())
        return list(model.parameters())

    expected = adapted()
    with accelerate(torchopt):
        torch.testing.assert_close(adapted(), expected, rtol=0, atol=0)


def test_optimisers_survive_the_end_of_accelerate():
    torchopt = peer("torchopt")
    model = net()
    outside = torchopt.MetaSGD(model, lr=0.05)
    with accelerate(torchopt):
        inside = torchopt.MetaSGD(model, lr=0.05)
        outside.step(model(torch.ones(2, 1).double()).square().sum())
        inside.step(model(torch.ones(2, 1).double()).square().sum())
    before = [p.detach().clone() for p in model.parameters()]
    loss = model(torch.ones(2, 1).double()).square().sum()
    grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    inside.step(loss)
    torch.testing.assert_close(list(model.parameters()), [p - 0.05 * g for p, g in zip(before, grads, strict=True)])


@pytest.mark.parametrize("by", ["reference", "ref", "copy", "clone", "deepcopy", "deepclone"])
def test_states(by):
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    state = ours.extract_state_dict(model, by=by, device=model[1].weight.device)
    weight = state.params[1]["weight"]
    assert (weight is model[1].weight) == (by in ("reference", "ref"))
    assert (weight.grad_fn is not None) == (by in ("copy", "clone"))
    if by.startswith("deep"):
        assert isinstance(weight, nn.Parameter)
    model(torch.randn(3, 1))
    shared = by in ("reference", "ref")
    assert state.buffers[0]["num_batches_tracked"] == (1 if shared else 0)
    ours.MetaSGD(model, lr=1.0).step(model(torch.randn(3, 1)).square().sum())
    ours.recover_state_dict(model, state)
    assert model[1].weight is weight
    assert model[0].num_batches_tracked == (2 if shared else 0)


def test_deep_copies_on_another_device_are_leaves():
    state = ours.extract_state_dict(nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1)), by="deepcopy", device="meta")
    for tensor in (t for held in (*state.params, *state.buffers) for t in held.values()):
        assert tensor.is_meta and tensor.is_leaf
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for held in state.params for p in held.values())


@pytest.mark.parametrize("by", ["copy", "deepcopy"])
def test_what_is_shared_is_shared_in_a_state(by):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    ours.recover_state_dict(model, ours.extract_state_dict(model, by=by))
    assert model[1].weight is model[0].weight
    assert len(list(ours.module_clone(model, by=by).parameters())) == 3


def test_module_clone():
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    same = ours.module_clone(model)
    assert same is not model and same[1].weight is model[1].weight and same[0].running_mean is model[0].running_mean
    assert ours.module_clone(model, by="copy")[1].weight.grad_fn is not None
    deep = ours.module_clone(model, by="deepcopy")
    assert deep[1].weight is not model[1].weight and deep[1].weight.is_leaf
    assert ours.module_clone([model[1].weight], device="meta")[0].is_meta
    assert ours.module_detach_(model) is model
    with pytest.raises(NotImplementedError, match="module_clone: target must be a module or a tree of tensors"):
        ours.module_clone(ours.MetaSGD(model, 0.1))


def test_the_state_of_an_optimiser_goes_with_its_steps():
    def stepped(inner, model):
        inner.step(model(torch.ones(3, 1).double()).square().sum())
        return [p.detach().clone() for p in model.parameters()]

    model = net()
    inner = ours.MetaSGD(model, lr=0.01, momentum=0.9)
    stepped(inner, model)
    kept = [ours.extract_state_dict(part, by="copy") for part in (model, inner)]
    expected = stepped(inner, model)
    for part, state in zip((model, inner), kept, strict=True):
        ours.recover_state_dict(part, state)
    torch.testing.assert_close(stepped(inner, model), expected, rtol=0, atol=0)
    ours.stop_gradient(inner)
    assert all(state["trace"].grad_fn is None for state in inner.state_dict()[0].values())


def test_a_module_put_in_later_is_not_of_the_optimiser():
    """As in TorchOpt and torch.optim: its parameters are those that were there."""
    model = net()
    inner = ours.MetaSGD(model, lr=0.5)
    model[4] = nn.Linear(8, 1).double()
    weight = model[4].weight
    inner.step(model(torch.ones(3, 1).double()).square().sum())
    assert model[4].weight is weight and model[0].weight.grad_fn is not None


def test_buffers_of_their_own():
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    state = ours.extract_state_dict(model, detach_buffers=True)
    for _ in range(2):  # the kept state does not change either
        model(torch.randn(3, 1))
        assert model[0].num_batches_tracked == 1
        ours.recover_state_dict(model, state)
        assert model[0].num_batches_tracked == 0
    kept = ours.extract_state_dict(model, with_buffers=False)
    assert kept.buffers == ()
    model(torch.randn(3, 1))
    ours.recover_state_dict(model, kept)
    assert model[0].num_batches_tracked == 1


def test_stop_gradient():
    model = nn.Linear(1, 1)
    ours.MetaSGD(model, lr=1.0).step(model(torch.ones(1, 1)).sum())
    assert model.weight.grad_fn is not None
    ours.stop_gradient(model)
    assert model.weight.grad_fn is None and model.weight.requires_grad
    ours.MetaSGD(model, lr=1.0).step(model(torch.ones(1, 1)).sum())
    state = ours.extract_state_dict(model)
    ours.stop_gradient(state)
    assert model.weight.grad_fn is None and model.weight.requires_grad


def test_frozen_unused_and_shared_parameters():
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("used", "frozen", "unused", "same")})
    model["frozen"].requires_grad_(False)
    model["same"].weight = model["used"].weight
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ours.MetaSGD(model, lr=torch.tensor(0.5)).step(model["frozen"](model["used"](torch.ones(1, 2))).square().sum())
    assert model["same"].weight is model["used"].weight
    changed = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"used"}


def test_errors():
    model = nn.Linear(1, 1)
    for options, words in (
        ({"dampening": -0.1}, "dampening must not be negative, got -0.1"),
        ({"nesterov": True}, "momentum must be positive where nesterov is True, got 0.0"),
        ({"momentum": -1.0}, "momentum must not be negative, got -1.0"),
        ({"weight_decay": float("nan")}, "weight_decay must not be negative, got nan"),
    ):
        with pytest.raises(ValueError, match=f"MetaSGD: {words}"):
            ours.MetaSGD(model, 0.1, **options)
    with pytest.raises(ValueError, match=r"MetaAdam: betas must be less than 1, got \(0.9, 1.0\)"):
        ours.MetaAdam(model, betas=(0.9, 1.0))
    with pytest.raises(ValueError, match=r"MetaSGD: lr must have one element, got shape \[2\]"):
        ours.MetaSGD(model, torch.ones(2))
    with pytest.raises(TypeError, match="MetaSGD: lr must be a number or a tensor, got str"):
        ours.MetaSGD(model, "0.1")
    with pytest.raises(TypeError, match="MetaSGD: module must be a torch.nn.Module, got list"):
        ours.MetaSGD([model.weight], 0.1)
    with pytest.raises(TypeError, match="MetaSGD.step: loss must be a tensor, got float"):
        ours.MetaSGD(model, 0.1).step(1.0)
    for name in ("extract_state_dict", "recover_state_dict"):
        with pytest.raises(TypeError, match=f"{name}: target must be a module or an optimiser"):
            getattr(ours, name)(3, *(["state"] if name.startswith("recover") else []))
    with pytest.raises(TypeError, match="recover_state_dict: state must be that of a module, got tuple"):
        ours.recover_state_dict(model, ())
    with pytest.raises(ValueError, match="recover_state_dict: target must have 1 submodules with parameters, got 2"):
        ours.recover_state_dict(nn.Sequential(model, nn.Linear(1, 1)), ours.extract_state_dict(model))
    with pytest.raises(
        AttributeError, match="torchopt: the name must be one that fastmeta.integrations has .* got no_such_name"
    ):
        ours.no_such_name  # noqa: B018
    with pytest.raises(ValueError, match="MetaSGD: lr must not be negative, got -1"):
        ours.MetaSGD(model, -1)
    with pytest.raises(ValueError, match="extract_state_dict: by must be .* got 'value'"):
        ours.extract_state_dict(model, by="value")
    with pytest.raises(ValueError, match="MetaSGD: state_dict must have 1 entries, got 2"):
        ours.MetaSGD(model, 0.1).load_state_dict(((), ()))

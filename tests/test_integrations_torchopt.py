"""Programs in TorchOpt's language, on plain PyTorch, on fastmeta.integrations, on TorchOpt, and on it accelerated."""

import pytest
import torch
import torch.nn.functional as F
from installed_peers import peer
from programs import TASKS, assert_same, losses_of, maml_by_hand, net, size, trained, waves  # noqa: F401  (size: a fixture)
from torch import nn

from fastmeta.integrations import accelerate
from fastmeta.integrations import torchopt as ours


def maml(torchopt, by="reference"):
    model = net()
    inner = torchopt.MetaSGD(model, lr=0.05)

    def meta_loss():
        total = 0
        start = [torchopt.extract_state_dict(part, by=by) for part in (model, inner)]
        for support_x, support_y, query_x, query_y in zip(*waves(), strict=True):
            for _ in range(2):
                inner.step(F.mse_loss(model(support_x), support_y))
            total = total + F.mse_loss(model(query_x), query_y)
            torchopt.recover_state_dict(model, start[0])
            torchopt.recover_state_dict(inner, start[1])
        return total / TASKS

    return trained(list(model.parameters()), meta_loss)


def two_modules(torchopt):
    """Body and head are groups of one optimiser; both are put back."""
    model = net()
    inner = torchopt.MetaSGD(model[:2], lr=0.05)
    inner.add_param_group(model[2:])

    def meta_loss():
        total = 0
        start = torchopt.extract_state_dict(model, by="reference", detach_buffers=True)
        for support_x, support_y, query_x, query_y in zip(*waves(), strict=True):
            for _ in range(2):
                inner.step(F.mse_loss(model(support_x), support_y))
            total = total + F.mse_loss(model(query_x), query_y)
            torchopt.recover_state_dict(model, start)
        return total / TASKS

    return trained(list(model.parameters()), meta_loss)


PROGRAMS = pytest.mark.parametrize("program", [maml, two_modules], ids=lambda program: program.__name__)


@PROGRAMS
def test_program_on_plain_pytorch(program):
    assert_same(losses_of(program, ours), maml_by_hand(net(), 0.05, 2))


@PROGRAMS
def test_program_on_the_peer(program):
    assert_same(losses_of(program, ours), losses_of(program, peer("torchopt")))


@PROGRAMS
def test_accelerated_program(program):
    torchopt = peer("torchopt")
    init = torchopt.MetaSGD.__init__
    with accelerate(torchopt):
        assert "step" in vars(torchopt.MetaSGD)
        assert_same(program(torchopt), losses_of(program, ours))
    assert torchopt.MetaSGD.__init__ is init and "step" not in vars(torchopt.MetaSGD)


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
    options = {"momentum": 0.9, "weight_decay": 0.1, "dampening": 0.1, "nesterov": True, "maximize": True}
    for name, value in options.items():
        with pytest.raises(ValueError, match=f"MetaSGD: SGD must have no option but lr, got {name}={value}"):
            ours.MetaSGD(model, 0.1, **{name: value})
    with pytest.raises(ValueError, match="MetaSGD: lr must be a number or a tensor, got a schedule"):
        ours.MetaSGD(model, lambda step: 0.1)
    with pytest.raises(ValueError, match="MetaSGD: lr must not be negative, got -1"):
        ours.MetaSGD(model, -1)
    with pytest.raises(ValueError, match="extract_state_dict: by must be .* got 'value'"):
        ours.extract_state_dict(model, by="value")
    with pytest.raises(ValueError, match="MetaSGD: state_dict must have 1 entries, got 2"):
        ours.MetaSGD(model, 0.1).load_state_dict(((), ()))

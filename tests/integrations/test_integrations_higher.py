"""Programs in higher's language, on plain PyTorch, on fastmeta.integrations, on higher, and on it accelerated."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.integrations import accelerate
from fastmeta.integrations import higher as ours
from harness.installed_peers import peer
from harness.programs import TASKS, assert_same, losses_of, maml_by_hand, net, size, trained, waves  # noqa: F401  (size: a fixture)


def maml(higher):
    model = net()
    inner = torch.optim.SGD(model.parameters(), lr=0.05)

    def meta_loss():
        total = 0
        for support_x, support_y, query_x, query_y in zip(*waves(), strict=True):
            with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (fmodel, diffopt):
                for _ in range(2):
                    diffopt.step(F.mse_loss(fmodel(support_x), support_y))
                total = total + F.mse_loss(fmodel(query_x), query_y)
        return total / TASKS

    return trained(model.parameters(), meta_loss)


def learned_rates(higher):
    """A rate for each parameter, by `override`."""
    model = net()
    inner = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=1.0)
    rates = [nn.Parameter(torch.full_like(p, 0.05)) for p in model.parameters()]

    def meta_loss():
        total = 0
        for support_x, support_y, query_x, query_y in zip(*waves(), strict=True):
            override = {"lr": rates}
            with higher.innerloop_ctx(model, inner, copy_initial_weights=False, override=override) as (fmodel, diffopt):
                for _ in range(2):
                    diffopt.step(F.mse_loss(fmodel(support_x), support_y))
                total = total + F.mse_loss(fmodel(query_x), query_y)
        return total / TASKS

    return trained([*model.parameters(), *rates], meta_loss)


def initial_weights(higher):
    """The copy's own leaves, whose gradients are carried to the model by hand."""
    model = net()
    inner = torch.optim.SGD(model.parameters(), lr=0.05)

    def meta_loss():
        total, summed = 0, [torch.zeros_like(p) for p in model.parameters()]
        for support_x, support_y, query_x, query_y in zip(*waves(), strict=True):
            with higher.innerloop_ctx(model, inner) as (fmodel, diffopt):
                for _ in range(2):
                    diffopt.step(F.mse_loss(fmodel(support_x), support_y))
                loss = F.mse_loss(fmodel(query_x), query_y) / TASKS
                grads = torch.autograd.grad(loss, fmodel.parameters(time=0))
                summed = [s + g for s, g in zip(summed, grads, strict=True)]
                total = total + loss.detach()
        straight = sum((p * g).sum() for p, g in zip(model.parameters(), summed, strict=True))
        return total + straight - straight.detach()

    return trained(model.parameters(), meta_loss)


def rates_by_hand():
    model = net()
    return maml_by_hand(model, [nn.Parameter(torch.full_like(p, 0.05)) for p in model.parameters()], 2)


BY_HAND = {
    maml: lambda: maml_by_hand(net(), 0.05, 2),
    learned_rates: rates_by_hand,
    initial_weights: lambda: maml_by_hand(net(), 0.05, 2),
}
every_program = pytest.mark.parametrize("program", BY_HAND, ids=lambda program: program.__name__)


@every_program
def test_program_on_plain_pytorch(program):
    assert_same(losses_of(program, ours), BY_HAND[program]())


@every_program
def test_program_on_the_peer(program):
    assert_same(losses_of(program, ours), losses_of(program, peer("higher")))


@every_program
def test_accelerated_program(program):
    higher = peer("higher")
    update = higher.optim.DifferentiableSGD._update
    with accelerate(higher):
        assert higher.optim.DifferentiableSGD._update is not update
        assert_same(program(higher), losses_of(program, ours))
    assert higher.optim.DifferentiableSGD._update is update


def adapted(higher, model, inner, **options):
    """The parameters after two steps."""
    x, y = torch.linspace(-1, 1, 5).double()[:, None], torch.linspace(0, 1, 5).double()[:, None]
    with higher.innerloop_ctx(model, inner, **options) as (fmodel, diffopt):
        for _ in range(2):
            diffopt.step(F.mse_loss(fmodel(x), y))
        return fmodel, list(fmodel.parameters())


def test_accelerated_momentum_is_the_peers_own():
    higher = peer("higher")
    model = net()
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    _, expected = adapted(higher, model, inner)
    with accelerate(higher):
        _, found = adapted(higher, model, inner)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("copy", [True, False])
def test_a_part_of_the_parameters_frozen_ones_and_evaluation(copy):
    model = net()
    model[2].requires_grad_(False)
    before = [p.detach().clone() for p in model.parameters()]
    inner = torch.optim.SGD([*model[0].parameters(), *model[2].parameters()], lr=0.1)
    fmodel, after = adapted(ours, model, inner, track_higher_grads=False, copy_initial_weights=copy)
    changed = [not torch.equal(a, b) for a, b in zip(after, before, strict=True)]
    assert changed == [True, True, False, False, False, False]
    assert [p.requires_grad for p in after] == [True, True, False, False, True, True]
    assert all(p.is_leaf for p in after)
    assert next(fmodel.parameters(time=0)) is after[0]  # earlier ones are not kept
    for p, b in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, b)
    with pytest.raises(
        ValueError, match="parameters: time must be None, 0 or -1 unless track_higher_grads is True, got 1"
    ):
        fmodel.parameters(time=1)
    with pytest.raises(RuntimeError, match="init_fast_params: track_higher_grads must be True, got False"):
        fmodel.init_fast_params  # noqa: B018


@pytest.mark.cpu  # cuDNN's LSTM has no second derivative
def test_the_copy_is_a_model_of_its_own():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.LSTM(2, 2)).double()
    model[1].bias = None
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(4, 2).double()
    with ours.innerloop_ctx(model, inner, device=torch.device(x.device)) as (fmodel, diffopt):
        assert isinstance(fmodel, nn.Sequential) and type(fmodel).__name__ == "FunctionalSequential"
        assert list(fmodel.state_dict()) == list(model.state_dict())
        first = fmodel(x)[0]
        diffopt.step(first.square().sum(), grad_callback=lambda grads: [2 * g for g in grads])
        start, now = list(fmodel.parameters(time=0)), list(fmodel.parameters())
        assert fmodel.init_fast_params == start and fmodel.fast_params == now
        grads = torch.autograd.grad(first.square().sum(), start)
        torch.testing.assert_close(now, [p - 0.2 * g for p, g in zip(start, grads, strict=True)])
        torch.testing.assert_close(fmodel(x, params=start)[0], first)
    assert model[0].num_batches_tracked == 0  # buffers are copies

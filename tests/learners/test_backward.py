"""learner.backward: the gradients of loss(...).mean().backward(), with hooks, with data that needs gradients, and after errors."""

import copy

import pytest
import torch
from torch import nn

import fastmeta
from harness.learner_cases import ALL, data_of, made


def gradients(learner):
    return {name: p.grad for name, p in learner.named_parameters()}


@pytest.mark.parametrize("name", ALL)
def test_equals_the_mean_losss_backward(name):
    learner, data = made(name), data_of(name)
    other = copy.deepcopy(learner)
    for _ in range(2):  # into gradients that are not there, then added to those that are
        torch.manual_seed(1)
        losses = learner.loss(*data)
        losses.mean().backward()
        torch.manual_seed(1)
        found = other.backward(*data)
    assert not found.requires_grad
    torch.testing.assert_close(found, losses.detach())
    torch.testing.assert_close(gradients(other), gradients(learner))


def sinusoid(kind, loss="mse", **options):
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    return kind(net, 0.05, 2, loss=loss, **options), [torch.randn(3, 4, 1, dtype=torch.float64) for _ in range(4)]


@pytest.mark.parametrize("kind", [fastmeta.MAML, fastmeta.MetaSGD])
@pytest.mark.cpu
def test_autograd_takes_no_part_in_a_native_inner_loop(kind, monkeypatch):
    learner, data = sinusoid(kind)
    monkeypatch.setattr(torch.Tensor, "backward", None)
    assert learner.backward(*data).shape == (3,)
    assert all(p.grad is not None for p in learner.parameters())


@pytest.mark.parametrize(
    "rate", [0.05, torch.tensor(0.05, dtype=torch.float64), [0.05, 0.02], "learned", "of a function"]
)
def test_rates_of_every_kind(rate):
    learner, data = sinusoid(fastmeta.MAML)
    raw = nn.Parameter(torch.tensor([0.1, 0.2], dtype=torch.float64))
    if isinstance(rate, list):
        rate = torch.tensor(rate, dtype=torch.float64)
    learner.lr = {"learned": raw, "of a function": raw.exp() / 20}.get(rate, rate) if isinstance(rate, str) else rate
    learner.loss(*data).mean().backward(retain_graph=True)
    expected, of_raw = gradients(learner), raw.grad
    learner.zero_grad()
    raw.grad = None
    learner.backward(*data)
    torch.testing.assert_close(gradients(learner), expected)
    torch.testing.assert_close(raw.grad, of_raw)


def test_a_rate_that_is_frozen_among_others():
    learner, data = sinusoid(fastmeta.MetaSGD)
    learner.alpha[1].requires_grad_(False)
    learner.loss(*data).mean().backward()
    expected = gradients(learner)
    learner.zero_grad()
    learner.backward(*data)
    assert learner.alpha[1].grad is None
    torch.testing.assert_close(gradients(learner), expected)


def test_hooks_of_parameters_and_data_that_need_gradients():
    learner, data = sinusoid(fastmeta.MAML)
    learner.backward(*data)
    plain, seen = gradients(learner), []
    learner.zero_grad()
    first = next(learner.parameters())
    first.register_hook(lambda g: seen.append(g.clone()) or 2 * g)
    encoder = nn.Parameter(torch.ones(1, dtype=torch.float64))
    learner.backward(data[0] * encoder, *data[1:])
    torch.testing.assert_close(first.grad, 2 * plain["model.0.weight"])
    assert len(seen) == 1 and encoder.grad.item() != 0


class Doubled(fastmeta.MAML):
    """A loss of one's own, made of ours."""

    def loss(self, *data):
        return 2 * super().loss(*data) + next(self.parameters()).sum()


def test_a_subclass_with_a_loss_of_its_own():
    learner, data = sinusoid(Doubled)
    learner.loss(*data).mean().backward()
    expected = gradients(learner)
    learner.zero_grad()
    learner.backward(*data)
    torch.testing.assert_close(gradients(learner), expected)


def test_no_tasks_no_grad_and_wrong_arguments():
    learner, data = sinusoid(fastmeta.MAML)
    with torch.no_grad(), pytest.raises(RuntimeError, match="MAML: backward must run with grad mode on"):
        learner.backward(*data)
    with pytest.raises(ValueError, match="MAML: query_x must"):
        learner.backward(*data[:2], data[2][:, :, :0], data[3])
    assert all(p.grad is None for p in learner.parameters())
    assert learner.backward(*(x[:0] for x in data)).shape == (0,)
    assert all(not p.grad.any() for p in learner.parameters())

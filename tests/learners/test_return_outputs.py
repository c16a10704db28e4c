"""loss and backward with return_outputs: the losses, the gradients and the query outputs of one pass."""

import copy

import pytest
import torch
from torch import nn

import fastmeta
from harness.learner_cases import ALL, data_of, made


def gradients(learner):
    return {name: p.grad for name, p in learner.named_parameters()}


@pytest.mark.parametrize("way", ["loss", "backward"])
@pytest.mark.parametrize("name", ALL)
def test_equals_loss_and_prediction(name, way):
    learner, data = made(name).eval(), data_of(name)
    other = copy.deepcopy(learner)
    torch.manual_seed(1)
    expected = learner.loss(*data)
    expected.mean().backward()
    torch.manual_seed(1)
    losses, outputs = getattr(other, way)(*data, return_outputs=True)
    if way == "loss":
        losses.mean().backward()
    torch.manual_seed(1)
    predicted = learner(*data[:3])
    assert not outputs.requires_grad
    assert losses.requires_grad == (way == "loss")
    torch.testing.assert_close(losses.detach(), expected.detach())
    torch.testing.assert_close(gradients(other), gradients(learner))
    torch.testing.assert_close(outputs, predicted.detach())


def regression(net, kind=fastmeta.MAML, **options):
    torch.manual_seed(2)
    data = [torch.randn(3, n, 2, dtype=torch.float64) for n in (4, 4, 5, 5)]
    return kind(net.double(), 0.05, 2, loss="mse", **options), data


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))


@pytest.mark.cpu
def test_the_native_op_runs_once(monkeypatch):
    learner, data = regression(mlp())
    expected = learner(*data[:3])
    for op in ("mlp_adapt", "mlp_forward"):
        monkeypatch.setattr(f"fastmeta.networks.mlp.{op}", None)
    losses, outputs = learner.loss(*data, return_outputs=True)
    torch.testing.assert_close(outputs, expected.detach())
    torch.testing.assert_close(losses, (outputs - data[3]).square().mean((1, 2)))


def test_second_derivatives_leave_the_outputs_out():
    learner, data = regression(mlp())
    params = list(learner.parameters())

    def curvature(losses):
        slopes = torch.autograd.grad(losses.sum(), params, create_graph=True)
        return torch.autograd.grad(sum(s.square().sum() for s in slopes), params)

    expected = curvature(learner.loss(*data))
    torch.testing.assert_close(curvature(learner.loss(*data, return_outputs=True)[0]), expected)


def test_under_vmap_and_compile():
    learner, data = regression(mlp())
    losses, outputs = learner.loss(*data, return_outputs=True)

    def of(*data):
        return learner.loss(*data, return_outputs=True)

    many = [torch.stack([x, x]) for x in data]
    mapped = torch.vmap(of)(*many)
    torch.testing.assert_close(mapped[0], torch.stack([losses, losses]))
    torch.testing.assert_close(mapped[1], torch.stack([outputs, outputs]))
    found = torch.compile(of, backend="aot_eager")(*data)
    torch.testing.assert_close(found[0], losses)
    torch.testing.assert_close(found[1], outputs)


def test_wrong_query_labels_are_named():
    learner = fastmeta.MAML(mlp().double(), 0.05, 2)
    x, y = torch.randn(3, 4, 2, dtype=torch.float64), torch.randint(2, (3, 4))
    with pytest.raises(ValueError, match=r"MAML: query_y must .* got 2"):
        learner.loss(x, y, x, torch.full((3, 4), 2), return_outputs=True)


def test_a_loss_of_the_users_own_and_weights_of_each_step():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, outputs, y):
            return (self.scale * (outputs - y)).abs().mean()

    learner, data = regression(mlp())
    learner.inner_loss = Own()
    learner.loss(*data).sum().backward()
    expected = gradients(learner)
    learner.zero_grad()
    losses, outputs = learner.loss(*data, return_outputs=True)
    losses.sum().backward()
    torch.testing.assert_close(gradients(learner), expected)

    weighted, data = regression(mlp(), loss_weights=[0.25, 0.75])
    losses, outputs = weighted.loss(*data, return_outputs=True)
    torch.testing.assert_close(losses, weighted.loss(*data))
    torch.testing.assert_close(outputs, weighted(*data[:3]).detach())


def test_running_statistics_are_updated_once():
    def protonet():
        torch.manual_seed(3)
        encoder = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8))
        return fastmeta.ProtoNet(encoder, num_classes=2)

    one, other = protonet(), protonet()
    x, y = torch.randn(3, 4, 2), torch.arange(4).remainder(2).expand(3, 4)
    one.loss(x, y, x, y)
    other.loss(x, y, x, y, return_outputs=True)
    assert one.encoder[1].num_batches_tracked == other.encoder[1].num_batches_tracked == 1
    torch.testing.assert_close(one.encoder[1].running_mean, other.encoder[1].running_mean)


def test_no_tasks():
    learner, data = regression(mlp())
    losses, outputs = learner.loss(*(x[:0] for x in data), return_outputs=True)
    assert losses.shape == (0,) and outputs.shape == (0, 5, 2)

"""The learners against plain PyTorch, and their meta-gradients against finite differences."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call

import fastmeta
from fastmeta.networks.batch_norm import ExactNorms
from fastmeta.networks.mlp import Mlp
from harness.learner_cases import general, moved_loss

D = torch.float64


def mlp(loss="cross_entropy"):
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)).to(D)


def conv4(channels=4):
    """Conv4 on 16 x 16 images, batch norm on batch statistics."""
    layers: list[nn.Module] = []
    for i in range(4):
        norm = nn.BatchNorm2d(channels, track_running_stats=False)
        layers += [nn.Conv2d(channels if i else 1, channels, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 3)).to(D)


def episode(kind, tasks=2):
    shape = (2,) if kind is mlp else (1, 16, 16)
    y = torch.tensor([0, 1, 2]).repeat(2).expand(tasks, 6)
    return torch.randn(tasks, 6, *shape, dtype=D), y, torch.randn(tasks, 6, *shape, dtype=D), y


def plain_loss(learner, sx, sy, qx, qy):
    """MAML as its paper writes it: a loop over tasks, autograd through everything."""
    losses = []
    for task in range(len(sx)):
        params = dict(learner.model.named_parameters())
        rates = list(learner.alpha) if isinstance(learner, fastmeta.MetaSGD) else [learner.lr] * len(params)
        for _ in range(learner.steps):
            inner = F.cross_entropy(functional_call(learner.model, params, (sx[task],)), sy[task])
            grads = torch.autograd.grad(inner, list(params.values()), create_graph=not learner.first_order)
            params = {n: p - a * g for (n, p), a, g in zip(params.items(), rates, grads, strict=True)}
        losses.append(F.cross_entropy(functional_call(learner.model, params, (qx[task],)), qy[task]))
    return torch.stack(losses)


@pytest.mark.cpu
def test_torch_vmap_over_batch_norm_is_still_wrong():
    """Why `ExactNorms` is there. If this fails, torch has mended its batch norm."""
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Tanh(), nn.Linear(6, 3)).to(D)
    params = {name: p.detach() for name, p in net.named_parameters()}
    x, y = torch.randn(3, 5, 4, dtype=D), torch.randint(0, 3, (3, 5))

    def loss(params, x, y):
        return F.cross_entropy(functional_call(net, params, (x,)), y)

    def meta_loss(params, x, y):
        grads = torch.func.grad(loss)(params, x, y)
        return loss({name: p - 0.4 * grads[name] for name, p in params.items()}, x, y)

    in_one = torch.func.grad(lambda p: torch.vmap(meta_loss, (None, 0, 0))(p, x, y).sum())(params)
    in_turn = torch.func.grad(lambda p: sum(map(meta_loss, [p] * 3, x, y)))(params)
    error = (in_one["0.weight"] - in_turn["0.weight"]).norm() / in_turn["0.weight"].norm()
    assert error > 1e-4


@pytest.mark.cpu
@pytest.mark.parametrize(
    "norm",
    [
        lambda x: F.batch_norm(x, None, None, training=True),
        F.instance_norm,
        lambda x: F.layer_norm(x, x.shape[-1:]),
    ],
)
def test_third_derivatives_of_torchs_norms_are_still_wrong(norm):
    """Why `ExactNorms` is there, which has them right. If this fails, torch has mended the norm."""
    x = torch.randn(4, 3, 5, dtype=D, requires_grad=True)

    def second(x):
        (g,) = torch.autograd.grad(norm(x).sin().square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.sin().sum(), x, create_graph=True)[0]

    assert gradcheck(norm, x) and not gradcheck(second, x, raise_exception=False)
    with ExactNorms():
        assert gradcheck(second, x)


@pytest.mark.parametrize("kind", [mlp, conv4])
@pytest.mark.parametrize("learner_of", [fastmeta.MAML, fastmeta.MetaSGD])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("first_order", [False, True])
def test_meta_gradient_equals_plain_autograd(kind, learner_of, steps, first_order):
    learner = learner_of(kind(), 0.1, steps, first_order=first_order)
    data = episode(kind)
    params = list(learner.parameters())
    ours, plain = learner.loss(*data), plain_loss(learner, *data)
    torch.testing.assert_close(ours, plain)
    for a, b in zip(torch.autograd.grad(ours.sum(), params), torch.autograd.grad(plain.sum(), params), strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm() + 1e-12


@pytest.mark.parametrize("kind", [mlp, conv4])
@pytest.mark.parametrize("learner_of", [fastmeta.MAML, fastmeta.MetaSGD])
@pytest.mark.parametrize("steps", [1, 5])
def test_meta_gradient_by_finite_differences(kind, learner_of, steps):
    """Along one random direction in all parameters (and rates): relative error below 1e-6."""
    torch.manual_seed(3)
    learner = learner_of(kind(), 0.1 if kind is mlp else 0.01, steps)
    data, params = episode(kind), list(learner.parameters())
    grads = torch.autograd.grad(learner.loss(*data).sum(), params)
    directions = [torch.randn_like(p) for p in params]
    analytic = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))

    errors = []
    for h in (1e-5, 1e-6, 1e-7, 3e-8, 1e-8):  # a kink of ReLU or max-pool within one step spoils it, not the others
        forth, back = (moved_loss(learner, data, directions, sign * h) for sign in (1, -1))
        numeric = (forth - back) / (2 * h)
        errors.append(float(abs(numeric - analytic) / abs(analytic)))
    assert min(errors) < 1e-6, errors


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_fused_and_general_engines_agree(loss):
    learner = fastmeta.MAML(mlp(), 0.1, 3, loss=loss)
    other = general(learner)
    sx, sy, qx, qy = episode(mlp)
    if loss == "mse":
        sy, qy = torch.randn(2, 6, 3, dtype=D), torch.randn(2, 6, 3, dtype=D)
    assert isinstance(learner._plan().network, Mlp) and not isinstance(other._plan().network, Mlp)
    torch.testing.assert_close(learner(sx, sy, qx), other(sx, sy, qx))
    torch.testing.assert_close(learner.loss(sx, sy, qx, qy), other.loss(sx, sy, qx, qy))


def anil(kind):
    """Conv4 or an MLP whose last layer is the head."""
    *body, head = kind()
    return nn.Sequential(*body), head


def plain_anil_loss(learner, sx, sy, qx, qy):
    """One task after the other, autograd through the head's steps and the body's features."""
    losses = []
    for task in range(len(sx)):
        features = learner.body(torch.cat([sx[task], qx[task]]))
        support, query = features[: len(sx[task])], features[len(sx[task]) :]
        params = dict(learner.model.named_parameters())
        for k in range(learner.steps):
            inner = F.cross_entropy(functional_call(learner.model, params, (support,)), sy[task])
            grads = torch.autograd.grad(inner, list(params.values()), create_graph=not learner.first_order)
            params = {n: p - learner.lr[k] * g for (n, p), g in zip(params.items(), grads, strict=True)}
        losses.append(F.cross_entropy(functional_call(learner.model, params, (query,)), qy[task]))
    return torch.stack(losses)


@pytest.mark.parametrize("kind", [mlp, conv4])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("backend", ["ext", "reference"], indirect=True)
def test_anil_equals_plain_autograd(kind, first_order, backend):
    rates = nn.Parameter(torch.tensor([0.1, 0.3, 0.2], dtype=D))
    learner = fastmeta.ANIL(*anil(kind), rates, 3, first_order=first_order)
    assert isinstance(learner._plan().network, Mlp)  # the head runs on the fused op
    data, params = episode(kind), list(learner.parameters())
    ours, plain = learner.loss(*data), plain_anil_loss(learner, *data)
    torch.testing.assert_close(ours, plain)
    for a, b in zip(torch.autograd.grad(ours.sum(), params), torch.autograd.grad(plain.sum(), params), strict=True):
        torch.testing.assert_close(a, b)
    outputs = learner(*data[:3])
    loss_of_outputs = torch.stack([F.cross_entropy(o, y) for o, y in zip(outputs, data[3], strict=True)])
    torch.testing.assert_close(loss_of_outputs, plain)


def test_rates_are_learned_and_per_step():
    data = episode(mlp)
    for model in (mlp(), nn.Sequential(mlp())):  # fused and general
        learner = fastmeta.MAML(model, nn.Parameter(torch.tensor([0.1, 0.2], dtype=D)), 2)
        learner.loss(*data).sum().backward()
        assert learner.lr.grad.abs().min() > 0
        assert "lr" in learner.state_dict()


def test_a_function_as_loss_and_frozen_parameters():
    learner = fastmeta.MAML(mlp(), 0.1, 2, loss=lambda outputs, targets: F.cross_entropy(outputs, targets))
    data = episode(mlp)
    torch.testing.assert_close(learner.loss(*data), fastmeta.MAML(learner.model, 0.1, 2).loss(*data))
    learner.model[0].requires_grad_(False)
    frozen = fastmeta.MAML(learner.model, 0.1, 2)
    frozen.loss(*data).sum().backward()
    assert frozen.model[0].weight.grad is None and frozen.model[2].weight.grad is not None


def test_evaluation_without_gradients():
    for kind in (mlp, conv4):
        learner = fastmeta.MAML(kind(), 0.1, 2)
        sx, sy, qx, _ = episode(kind)
        with torch.no_grad():
            quiet = learner(sx, sy, qx)
        assert not quiet.requires_grad
        torch.testing.assert_close(quiet, learner(sx, sy, qx).detach())


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
def test_protonet_equals_plain_pytorch(metric):
    learner = fastmeta.ProtoNet(
        nn.Linear(2, 4).to(D), metric=metric, temperature=nn.Parameter(torch.tensor(0.7, dtype=D))
    )
    sx, sy, qx, qy = episode(mlp)
    params = list(learner.parameters())
    logits = []
    for task in range(2):
        s, q = learner.encoder(sx[task]), learner.encoder(qx[task])
        centres = torch.stack([s[sy[task] == k].mean(0) for k in range(3)])
        logits.append(-(torch.cdist(q, centres) ** (2 if metric == "sqeuclidean" else 1)) / learner.temperature)
    plain = torch.stack([F.cross_entropy(z, y) for z, y in zip(logits, qy, strict=True)])
    ours = learner.loss(sx, sy, qx, qy)
    torch.testing.assert_close(learner(sx, sy, qx), torch.stack(logits).log_softmax(-1))
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(torch.autograd.grad(ours.sum(), params), torch.autograd.grad(plain.sum(), params))


def test_modules_behave():
    """state_dict, deepcopy, .to() and an optimiser step."""
    for learner in (fastmeta.ProtoNet(mlp()), fastmeta.MAML(mlp()), fastmeta.MetaSGD(mlp())):
        twin = copy.deepcopy(learner)
        optimiser = torch.optim.Adam(learner.parameters())
        learner.loss(*episode(mlp)).mean().backward()
        assert all(p.grad is not None for p in learner.parameters())
        optimiser.step()
        twin.load_state_dict(learner.state_dict())
        data = episode(mlp)
        torch.testing.assert_close(twin.loss(*data), learner.loss(*data))
        assert next(learner.float().parameters()).dtype == torch.float32


def test_ragged_tasks():
    """Label -100 leaves an example out, in every engine."""
    for kind in (mlp, lambda: nn.Sequential(mlp())):
        learner = fastmeta.MAML(kind(), 0.1, 2)
        sx, sy, qx, qy = episode(mlp)
        ragged = sy.clone()
        ragged[0, 4:] = -100
        alone = learner.loss(sx[:1, :4], sy[:1, :4], qx[:1], qy[:1])
        torch.testing.assert_close(learner.loss(sx, ragged, qx, qy)[:1], alone)


def test_errors():
    sx, sy, qx, qy = episode(mlp)
    with pytest.raises(
        ValueError, match="MAML: batch norm must use the statistics of each batch, got running statistics in '1'"
    ):
        fastmeta.MAML(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    with pytest.raises(ValueError, match="MetaSGD: loss must be 'cross_entropy', 'mse' or a function, got 'hinge'"):
        fastmeta.MetaSGD(mlp(), loss="hinge")
    with pytest.raises(ValueError, match="MAML: steps must be a whole number, 0 or more, got 1.5"):
        fastmeta.MAML(mlp(), steps=1.5)
    with pytest.raises(
        ValueError, match="ProtoNet: metric must be one of 'euclidean', 'sqeuclidean', 'cosine', got 'manhattan'"
    ):
        fastmeta.ProtoNet(mlp(), metric="manhattan")
    with pytest.raises(
        ValueError, match=r"MAML: query_x must have the 2 tasks of support_x in front, got shape \[1, 6, 2\]"
    ):
        fastmeta.MAML(mlp())(sx, sy, qx[:1])
    with pytest.raises(ValueError, match=r"ProtoNet: query_y must have shape \[2, 6\] in front, got \[2, 5\]"):
        fastmeta.ProtoNet(mlp()).loss(sx, sy, qx, qy[:, :5])

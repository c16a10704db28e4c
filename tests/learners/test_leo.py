"""LEO against a slow implementation of its own, by loops over tasks, classes and pairs, and against finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

import fastmeta
from harness.plain_loops import OPTIONS, WEIGHTS, D, check_slope

TASKS, WAYS, SHOTS, FEATURES, LATENTS = 3, 4, 2, 6, 5


def learner_of(steps=2, finetune_steps=2, dropout=0.0, **options):
    """Every part of the loss matters, and no two rates are equal."""
    options = {"kl_weight": 0.3, "encoder_weight": 0.7, "orthogonality_weight": 0.5} | options
    learner = fastmeta.LEO(FEATURES, LATENTS, 1.0, steps, finetune_steps=finetune_steps, dropout=dropout, **options).to(
        D
    )
    with torch.no_grad():
        learner.lr.uniform_(0.5, 1.5)
        learner.finetune_lr.uniform_(0.2, 0.6)
    return learner


def episode(shots=(SHOTS,) * WAYS):
    """Labels in another order in every task."""
    labels = torch.arange(len(shots)).repeat_interleave(torch.tensor(shots))
    sy = torch.stack([labels[torch.randperm(len(labels))] for _ in range(TASKS)])
    qy = torch.randint(0, len(shots), (TASKS, 7))
    draw = lambda y: torch.randn(*y.shape, FEATURES, dtype=D)  # noqa: E731
    return draw(sy), sy, draw(qy), qy


def noise_of(learner, sx, qx, ways=WAYS):
    """What the learner draws, in its order: masks as factors, then the normal numbers."""
    support, query, encoded = (F.dropout(torch.ones_like(x), learner.dropout.p, learner.training) for x in (sx, qx, sx))
    draw = torch.randn if learner.training else torch.zeros
    return support, query, encoded, draw(TASKS, ways, LATENTS, dtype=D), draw(TASKS, ways, FEATURES, dtype=D)


def plain_code(learner, x, y, ways):
    """Mean and standard deviation of each class's code, [N, L] each: a sum over all pairs."""
    net = learner.relation
    mlp = nn.Sequential(net.first, nn.ReLU(), net.second, nn.ReLU(), net.third)
    codes, rows = learner.encoder(x), []
    for n in range(ways):
        members = [i for i in range(len(y)) if y[i] == n]
        pairs = [mlp(torch.cat([codes[i], codes[j]])) for i in members for j in range(len(y))]
        rows.append(sum(pairs) / len(pairs))
    mean, raw = torch.stack(rows).split(LATENTS, -1)
    return mean, torch.log2(1 + raw.exp())


def plain_decode(learner, z, noise):
    mean, raw = learner.decoder(z).split(FEATURES, -1)
    return mean + noise * math.sqrt(2 / (len(z) + FEATURES)) * torch.log2(1 + raw.exp())


def plain(learner, sx, sy, qx, qy):
    """Scores and losses as the paper writes them, autograd through every step."""
    ways = int(sy.max()) + 1
    noise, scores, losses = noise_of(learner, sx, qx, ways), [], []
    for x, y, q, target, mask, query_mask, encoder_mask, of_z, of_w in zip(sx, sy, qx, qy, *noise, strict=True):
        mean, std = plain_code(learner, x * encoder_mask, y, ways)
        start = z = mean + std * of_z
        for _ in range(learner.steps):
            inner = F.cross_entropy(x * mask @ plain_decode(learner, z, of_w).T, y)
            z = z - learner.lr * torch.autograd.grad(inner, z, create_graph=True)[0]
        w = plain_decode(learner, z, of_w)
        for _ in range(learner.finetune_steps):
            inner = F.cross_entropy(x * mask @ w.T, y)
            w = w - learner.finetune_lr * torch.autograd.grad(inner, w, create_graph=True)[0]
        scores.append(q * query_mask @ w.T)
        prior, posterior = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(mean, std)
        kl = torch.distributions.kl_divergence(posterior, prior).mean()
        loss = F.cross_entropy(scores[-1], target) + learner.kl_weight * kl
        loss = loss + learner.encoder_weight * F.mse_loss(start, z.detach())
        losses.append(loss + learner.orthogonality_weight * plain_orthogonality(learner.decoder.weight))
    return torch.stack(scores), torch.stack(losses)


def plain_orthogonality(weight):
    """Mean of (C - I)^2, C the cosines of the decoder's rows (columns of torch's weight)."""
    total = 0.0
    for i in range(LATENTS):
        for j in range(LATENTS):
            cosine = F.cosine_similarity(weight[:, i], weight[:, j], dim=0)
            total = total + (cosine - float(i == j)) ** 2
    return total / LATENTS**2


def seeded(function, *args):
    torch.manual_seed(5)
    return function(*args)


def same(ours, truth, inputs):
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)
    weight = torch.linspace(1, 2, ours.numel(), dtype=D).view(ours.shape)
    found = [torch.autograd.grad((x * weight).sum(), inputs, retain_graph=True, **OPTIONS) for x in (ours, truth)]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)


def same_as_plain(learner, data, *more):
    """Scores, losses, and the gradients of both."""
    inputs = [*learner.parameters(), *more]
    scores, losses = seeded(plain, learner, *data)
    same(seeded(learner, *data[:3]), scores, inputs)
    same(seeded(learner.loss, *data), losses, inputs)
    return losses


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("steps", "finetune_steps"), [(0, 0), (1, 0), (0, 1), (3, 2)])
@pytest.mark.parametrize("backend", ["ext", "reference"], indirect=True)
def test_equals_plain_autograd(training, steps, finetune_steps, backend):
    learner, data = learner_of(steps, finetune_steps, dropout=0.3).train(training), episode()
    same_as_plain(learner, data, data[0].requires_grad_(), data[2].requires_grad_())


def test_classes_may_differ_in_shots_and_queries_be_left_out():
    learner, data = learner_of(), episode(shots=(1, 3, 2, 4))
    data[3][:, 4:] = -100
    same_as_plain(learner, data)


def test_changed_layers_are_honoured():
    """Against the slow implementation, which calls them: hooks, biases, parametrizations; a decoder that is none of its own."""
    louder = lambda module, inputs, output: 2 * output  # noqa: E731
    for change in (
        lambda net: net.decoder.register_forward_hook(louder),
        lambda net: net.relation.first.register_forward_hook(louder),
        lambda net: net.relation.third.register_forward_hook(lambda module, inputs, output: output.tanh()),
        lambda net: setattr(net.relation, "first", nn.Linear(2 * LATENTS, 2 * LATENTS).to(D)),
        lambda net: setattr(net, "decoder", nn.Linear(LATENTS, 2 * FEATURES).to(D)),
        lambda net: register_parametrization(net.decoder, "weight", nn.Tanh()),
        lambda net: setattr(net, "encoder", nn.Sequential(nn.Linear(FEATURES, LATENTS), nn.Tanh()).to(D)),
    ):
        learner, data = learner_of(), episode()
        before = seeded(learner.loss, *data)
        change(learner)
        assert not torch.allclose(before, same_as_plain(learner, data))
    learner.decoder = nn.Sequential(nn.Linear(LATENTS, 2 * FEATURES))
    with pytest.raises(TypeError, match="LEO: decoder must be a torch.nn.Linear, got Sequential"):
        learner.loss(*data)


def test_second_derivatives_of_the_meta_loss():
    learner, data = learner_of(), episode()
    params, squares = list(learner.parameters()), []
    for losses in (seeded(learner.loss, *data), seeded(plain, learner, *data)[1]):
        grads = torch.autograd.grad((losses * WEIGHTS[:TASKS]).sum(), params, create_graph=True)
        squares.append(torch.autograd.grad(sum(g.square().sum() for g in grads), params))
    torch.testing.assert_close(*squares, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("training", [False, True])
def test_meta_gradient_by_finite_differences(training):
    """The noise fixed; without the penalty whose gradient is stopped."""
    learner, data = learner_of(3, 2, dropout=0.3, encoder_weight=0.0).train(training), episode()
    check_slope(
        lambda: seeded(learner.loss, *data).sum(), list(learner.parameters()), (1e-4, 1e-5, 1e-6, 1e-7), rtol=1e-7
    )


def test_samples_in_training_and_means_in_evaluation():
    learner, (sx, sy, qx, _) = learner_of(dropout=0.3), episode()
    assert not torch.equal(learner(sx, sy, qx), learner(sx, sy, qx))
    learner.eval()
    assert torch.equal(learner(sx, sy, qx), learner(sx, sy, qx))


def test_learns():
    """Gaussian clusters in 16 dimensions, 5-way 1-shot, unseen classes: against chance (0.2) and the untrained learner."""
    torch.manual_seed(1)
    learner = fastmeta.LEO(16, 16, dropout=0.0, num_classes=5)

    def sample(tasks):
        centres, found = torch.randn(tasks, 5, 16), []
        for shots in (1, 3):
            x = centres.repeat(1, shots, 1)
            found += [x + 0.8 * torch.randn_like(x), torch.arange(5).repeat(shots).expand(tasks, -1)]
        return found

    unseen = sample(300)

    @torch.no_grad()
    def accuracy():
        right = learner.eval()(*unseen[:3]).argmax(-1) == unseen[3]
        learner.train()
        return float(right.float().mean())

    untrained = accuracy()
    optimiser = torch.optim.Adam(learner.parameters(), 3e-3)
    for _ in range(300):
        optimiser.zero_grad()
        learner.loss(*sample(16)).mean().backward()
        optimiser.step()
    trained = accuracy()
    assert trained > 0.85 and trained > untrained + 0.1, (untrained, trained)


def test_errors():
    sx, sy, qx, _ = episode()
    emptied, padded = sy.clone(), sy.clone()
    emptied[1][emptied[1] == 2], padded[0, 0] = 0, -100
    for episode_, words in (
        ((sx, sy, qx[..., :5]), r"LEO: query_x must have shape \[T, n, 6\], got \[3, 7, 5\]"),
        ((sx[..., None], sy, qx), r"LEO: support_x must have shape \[T, n, 6\], got \[3, 8, 6, 1\]"),
        ((sx[:, :0], sy[:, :0], qx), r"LEO: support_y must hold at least one example, got shape \[3, 0\]"),
        ((sx, emptied, qx), "every class must have a support example, got none of class 2 in task 1"),
        ((sx, padded, qx), r"LEO: support_y must be in \[0, 4\), got -100"),
    ):
        with pytest.raises(ValueError, match=words):
            learner_of()(*episode_)

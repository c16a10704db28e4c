"""LEO against a slow implementation of its own, by loops over tasks, classes and pairs, and against finite differences."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

import fastmeta
from fastmeta.learners import leo
from harness.learner_cases import loss_by_params

D = torch.float64
TASKS, WAYS, SHOTS, FEATURES, LATENTS = 3, 4, 2, 6, 5
WEIGHTS = torch.tensor([1.0, -0.5, 2.0], dtype=D)


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
    weight = WEIGHTS.reshape(-1, *[1] * (ours.ndim - 1)) * torch.linspace(1, 2, ours[0].numel(), dtype=D).view(
        ours[0].shape
    )
    found = torch.autograd.grad((ours * weight).sum(), inputs, allow_unused=True, materialize_grads=True)
    true = torch.autograd.grad(
        (truth * weight).sum(), inputs, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    for a, b in zip(found, true, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("steps", "finetune_steps"), [(0, 0), (1, 0), (0, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize("backend", ["ext", "reference"], indirect=True)
def test_equals_plain_autograd(training, steps, finetune_steps, backend):
    """Scores, losses, and the gradients of both with respect to all parameters and features."""
    learner = learner_of(steps, finetune_steps, dropout=0.3).train(training)
    sx, sy, qx, _ = data = episode()
    inputs = [*learner.parameters(), sx.requires_grad_(), qx.requires_grad_()]
    scores, losses = seeded(plain, learner, *data)
    same(seeded(learner, sx, sy, qx), scores, inputs)
    same(seeded(learner.loss, *data), losses, inputs)


def test_classes_may_differ_in_shots():
    learner, data = learner_of(), episode(shots=(1, 3, 2, 4))
    scores, losses = seeded(plain, learner, *data)
    same(seeded(learner, *data[:3]), scores, list(learner.parameters()))
    same(seeded(learner.loss, *data), losses, list(learner.parameters()))


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
        scores, losses = seeded(plain, learner, *data)
        params = list(learner.parameters())
        same(seeded(learner.loss, *data), losses, params)
        same(seeded(learner, *data[:3]), scores, params)
        assert not torch.allclose(before, losses)
    learner.decoder = nn.Sequential(nn.Linear(LATENTS, 2 * FEATURES))
    with pytest.raises(TypeError, match="LEO: decoder must be a torch.nn.Linear, got Sequential"):
        learner.loss(*data)


def test_second_derivatives_of_the_meta_loss():
    learner, data = learner_of(), episode()
    params = list(learner.parameters())
    squares = []
    for losses in (seeded(learner.loss, *data), seeded(plain, learner, *data)[1]):
        grads = torch.autograd.grad((losses * WEIGHTS).sum(), params, create_graph=True)
        squares.append(torch.autograd.grad(sum(g.square().sum() for g in grads), params))
    for a, b in zip(*squares, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("training", [False, True])
def test_meta_gradient_by_finite_differences(training):
    """Along one direction in all parameters and rates, the noise fixed; without the penalty whose gradient is stopped."""
    learner, data = learner_of(3, 2, dropout=0.3, encoder_weight=0.0).train(training), episode()
    params = list(learner.parameters())
    directions = [torch.randn_like(p) for p in params]
    grads = torch.autograd.grad((seeded(learner.loss, *data) * WEIGHTS).sum(), params)
    analytic = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))

    @torch.no_grad()
    def moved(h):
        far = copy.deepcopy(learner)
        for p, d in zip(far.parameters(), directions, strict=True):
            p += h * d
        return (seeded(far.loss, *data) * WEIGHTS).sum()

    errors = []
    for h in (1e-4, 1e-5, 1e-6, 1e-7):  # a kink of ReLU within one step spoils it, not the others
        numeric = (moved(h) - moved(-h)) / (2 * h)
        errors.append(float(abs(numeric - analytic) / abs(analytic)))
    assert min(errors) < 1e-7, errors


def test_kl():
    q = leo.Gaussian(torch.randn(3, 4, dtype=D), torch.rand(3, 4, dtype=D) + 0.1)
    normal = torch.distributions.Normal
    truth = torch.distributions.kl_divergence(normal(q.mean, q.std), normal(0.0, 1.0))
    torch.testing.assert_close(leo.kl_to_standard_normal(q), truth)
    assert leo.kl_to_standard_normal(leo.Gaussian(torch.zeros(2), torch.ones(2))).eq(0).all()


def test_orthogonality_by_hand():
    """Columns (3, 4) and (1, 0): cosine 0.6. Two axes: 0, whatever their lengths."""
    weight = torch.tensor([[3.0, 1.0], [4.0, 0.0]], dtype=D)
    torch.testing.assert_close(leo.squared_correlations(weight), torch.tensor([[0.0, 0.36], [0.36, 0.0]], dtype=D))
    assert leo.squared_correlations(torch.tensor([[0.0, 2.0], [-7.0, 0.0], [0.0, 0.0]])).eq(0).all()


def test_regularisers_are_added_to_the_query_loss():
    """With weights of 0 the loss is the cross-entropy of the scores."""
    learner, (sx, sy, qx, qy) = learner_of(kl_weight=0.0, encoder_weight=0.0, orthogonality_weight=0.0), episode()
    scores = seeded(learner, sx, sy, qx)
    torch.testing.assert_close(
        seeded(learner.loss, sx, sy, qx, qy),
        torch.stack([F.cross_entropy(s, y) for s, y in zip(scores, qy, strict=True)]),
    )


def test_samples_in_training_and_means_in_evaluation():
    learner, (sx, sy, qx, _) = learner_of(dropout=0.3), episode()
    assert not torch.equal(learner(sx, sy, qx), learner(sx, sy, qx))
    learner.eval()
    torch.testing.assert_close(learner(sx, sy, qx), learner(sx, sy, qx), rtol=0, atol=0)
    with torch.no_grad():
        quiet = learner(sx, sy, qx)
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, learner(sx, sy, qx).detach())


def test_order_of_examples_and_classes():
    """Scores do not depend on the order of the support, and follow a new numbering of the classes."""
    learner, (sx, sy, qx, _) = learner_of().eval(), episode()
    scores, order, names = learner(sx, sy, qx), torch.randperm(sy.shape[1]), torch.randperm(WAYS)
    torch.testing.assert_close(learner(sx[:, order], sy[:, order], qx), scores)
    torch.testing.assert_close(learner(sx, names[sy], qx)[..., names], scores)


def test_tasks_do_not_mix():
    learner, (sx, sy, qx, qy) = learner_of().eval(), episode()
    alone = torch.cat([learner.loss(sx[t : t + 1], sy[t : t + 1], qx[t : t + 1], qy[t : t + 1]) for t in range(TASKS)])
    torch.testing.assert_close(learner.loss(sx, sy, qx, qy), alone)


def test_under_func():
    """torch.func.grad, and vmap of it over tasks, as autograd; the number of ways given."""
    learner, data = learner_of(num_classes=WAYS).eval(), episode()
    params = {name: p.detach() for name, p in learner.named_parameters()}
    truth = torch.autograd.grad(learner.loss(*data).sum(), list(learner.parameters()))

    value = loss_by_params(learner)
    found = torch.func.grad(value)(params, *data)
    of_tasks = torch.vmap(torch.func.grad(value), (None, 0, 0, 0, 0))(params, *(x.unsqueeze(1) for x in data))
    for name, expected in zip(params, truth, strict=True):
        torch.testing.assert_close(found[name], expected)
        torch.testing.assert_close(of_tasks[name].sum(0), expected)


def test_under_compile():
    torch._dynamo.reset()
    learner, data = learner_of(num_classes=WAYS).eval(), episode()
    compiled = torch.compile(lambda *data: learner.loss(*data), fullgraph=True, backend="aot_eager")
    same(compiled(*data), learner.loss(*data), list(learner.parameters()))


def test_under_autocast():
    learner = learner_of().float().eval()
    data = [x.float() if x.is_floating_point() else x for x in episode()]
    with torch.autocast("cpu", torch.bfloat16):
        losses = learner.loss(*data)
        losses.sum().backward()
    assert losses.dtype == torch.float32 and all(p.grad.isfinite().all() for p in learner.parameters())
    torch.testing.assert_close(losses, learner.loss(*data), rtol=0.02, atol=0.02)


def test_modules_behave():
    """state_dict, deepcopy, .to() and an optimiser step."""
    learner, data = learner_of(), episode()
    assert {"lr", "finetune_lr"} <= dict(learner.named_parameters()).keys()
    twin = copy.deepcopy(learner)
    optimiser = torch.optim.Adam(learner.parameters(), weight_decay=1e-8)
    learner.loss(*data).mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learner.parameters())
    optimiser.step()
    assert not torch.equal(seeded(twin.loss, *data), seeded(learner.loss, *data))
    twin.load_state_dict(learner.state_dict())
    torch.testing.assert_close(seeded(twin.loss, *data), seeded(learner.loss, *data), rtol=0, atol=0)
    assert {p.dtype for p in learner.float().parameters()} == {torch.float32}
    assert learner(data[0].float(), data[1], data[2].float()).dtype == torch.float32
    assert {p.device.type for p in learner.to("meta").parameters()} == {"meta"}


def test_queries_left_out():
    learner, (sx, sy, qx, qy) = learner_of().eval(), episode()
    ragged = qy.clone()
    ragged[:, 4:] = -100
    torch.testing.assert_close(learner.loss(sx, sy, qx, ragged), learner.loss(sx, sy, qx[:, :4], qy[:, :4]))


def test_learns():
    """Gaussian clusters in 16 dimensions, 5-way 1-shot, unseen classes: against chance (0.2) and the untrained learner."""
    torch.manual_seed(1)
    learner = fastmeta.LEO(16, 16, dropout=0.0, num_classes=5)

    def sample(tasks):
        centres = torch.randn(tasks, 5, 16)
        labels = [torch.arange(5).repeat(shots).expand(tasks, -1) for shots in (1, 3)]
        inputs = [torch.stack([c[i] for c, i in zip(centres, y, strict=True)]) for y in labels]
        (sx, qx), (sy, qy) = ([x + 0.8 * torch.randn_like(x) for x in inputs], labels)
        return sx, sy, qx, qy

    unseen = sample(300)

    @torch.no_grad()
    def accuracy():
        learner.eval()
        right = learner(*unseen[:3]).argmax(-1) == unseen[3]
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
    sx, sy, qx, qy = episode()
    learner = learner_of()
    with pytest.raises(ValueError, match="LEO: latents must be a whole number, 1 or more, got 0"):
        fastmeta.LEO(6, 0)
    with pytest.raises(ValueError, match="LEO: finetune_steps must be a whole number, 0 or more, got -1"):
        fastmeta.LEO(6, finetune_steps=-1)
    with pytest.raises(ValueError, match=r"LEO: query_x must have shape \[T, n, 6\], got \[3, 7, 5\]"):
        learner(sx, sy, qx[..., :5])
    with pytest.raises(ValueError, match=r"LEO: support_x must have shape \[T, n, 6\], got \[3, 8, 6, 1\]"):
        learner(sx[..., None], sy, qx)
    with pytest.raises(ValueError, match=r"LEO: query_y must have shape \[3, 7\] in front, got \[3, 6\]"):
        learner.loss(sx, sy, qx, qy[:, :6])
    with pytest.raises(ValueError, match=r"LEO: support_y must hold at least one example, got shape \[3, 0\]"):
        learner(sx[:, :0], sy[:, :0], qx)
    emptied = sy.clone()
    emptied[1][emptied[1] == 2] = 0
    with pytest.raises(ValueError, match="every class must have a support example, got none of class 2 in task 1"):
        learner(sx, emptied, qx)
    padded = sy.clone()
    padded[0, 0] = -100
    with pytest.raises(ValueError, match=r"LEO: support_y must be in \[0, 4\), got -100"):
        learner(sx, padded, qx)

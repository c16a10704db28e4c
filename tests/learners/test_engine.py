"""The general engine: any module, any loss, several tasks at once or one by one, against the plain loop of `plain_losses`."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastmeta
from fastmeta.networks import meta_gradient, tasks_at_once
from fastmeta.networks.mlp import Mlp
from harness.learner_cases import loss_by_params
from harness.plain_loops import WEIGHTS, D, episode, plain_losses, same_gradients


class Attends(nn.Module):
    """Two inputs as a sequence of two."""

    def __init__(self):
        super().__init__()
        self.embed, self.attention, self.out = (
            nn.Linear(3, 4),
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.Linear(4, 3),
        )

    def forward(self, x):
        tokens = self.embed(x.unflatten(1, (2, 3)))
        return self.out(torch.tanh(self.attention(tokens, tokens, tokens, need_weights=False)[0]).mean(1))


class Tied(nn.Module):
    """One weight used twice, another never."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(6, 6), nn.Linear(6, 3), nn.Parameter(torch.randn(2))

    def forward(self, x):
        return self.b(torch.tanh(self.a(torch.tanh(self.a(x)))))


def convolutional(norm):
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


MODELS = {
    "linear": lambda: nn.Sequential(nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 3)),
    "layer norm": lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)),
    "batch norm": lambda: nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Tanh(), nn.Linear(5, 3)
    ),
    "convolution, batch norm": lambda: convolutional(nn.BatchNorm2d(4, track_running_stats=False)),
    "convolution, instance norm": lambda: convolutional(nn.InstanceNorm2d(4, affine=True)),
    "convolution, group norm": lambda: convolutional(nn.GroupNorm(2, 4)),
    "attention": Attends,
    "tied": Tied,
    "prelu": lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.PReLU(5), nn.Linear(5, 3)),
}


@pytest.fixture(params=[1, 3], ids=["one by one", "several at once"])
def at_once(request, monkeypatch):
    monkeypatch.setattr(tasks_at_once, "tasks_at_once", lambda problem, flat: request.param)
    return request.param


def model_of(kind):
    torch.manual_seed(5)
    return MODELS[kind]().to(D)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_meta_gradients_of_any_module(kind, steps, first_order, at_once):
    for learner in (
        fastmeta.MAML(model_of(kind), nn.Parameter(torch.rand(steps, dtype=D)), steps, first_order=first_order),
        fastmeta.MetaSGD(model_of(kind), 0.3, steps, first_order=first_order),
    ):
        assert not isinstance(learner._plan().network, Mlp)
        data = episode()
        sx, sy, qx, qy = data
        inputs = [*learner.parameters(), sx.requires_grad_(), qx.requires_grad_()]
        plain = plain_losses(learner, *data)
        same_gradients(learner.loss(*data), plain, inputs, WEIGHTS)
        outputs = learner(sx, sy, qx)  # by the other Function
        from_outputs = torch.stack([F.cross_entropy(o, y) for o, y in zip(outputs, qy, strict=True)])
        same_gradients(from_outputs, plain_losses(learner, *data), inputs, WEIGHTS)


@pytest.mark.parametrize("weights", [(1.0,), (0.2, 0.3, 0.5), (0.5, 0.0, -1.0), (1.0, 2.0, 0.0)])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("learned", [True, False], ids=["learned rates", "fixed rates"])
def test_losses_after_every_step(learned, weights, first_order, at_once):
    model, steps = model_of("linear"), len(weights)
    rates = torch.rand(steps, dtype=D)
    learner = fastmeta.MAML(
        model, nn.Parameter(rates) if learned else rates, steps, first_order=first_order, loss_weights=weights
    )
    data = episode()
    inputs = [*learner.parameters(), data[0].requires_grad_(), data[2].requires_grad_()]
    same_gradients(learner.loss(*data), plain_losses(learner, *data), inputs, WEIGHTS)
    with torch.no_grad():
        torch.testing.assert_close(learner.loss(*data), plain_losses_of_values(learner, *data))
    if not first_order:
        twice = [
            torch.autograd.grad(of(*data).sum(), inputs, create_graph=True)
            for of in (learner.loss, partial(plain_losses, learner))
        ]
        found, truth = (torch.autograd.grad(sum(g.square().sum() for g in grads), inputs) for grads in twice)
        for a, b in zip(found, truth, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def plain_losses_of_values(learner, *data):
    with torch.enable_grad():
        return plain_losses(learner, *data).detach()


def test_weights_of_the_steps_are_checked_and_may_change():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).to(D)
    learner, data = fastmeta.MAML(model, 0.1, 2), episode()
    last = learner.loss(*data)
    learner.loss_weights = [0.0, 1.0]
    torch.testing.assert_close(learner.loss(*data), last)
    for wrong in ([], [1.0], [1.0, float("nan")]):
        learner.loss_weights = wrong
        with pytest.raises(ValueError, match="loss_weights must be a finite number for each"):
            learner.loss(*data)
    learner.loss_weights = None
    assert torch.equal(learner.loss(*data), last)


@pytest.mark.parametrize("graphs", [0, 1, 2, 5])
def test_graphs_that_stay_change_nothing(graphs, at_once, monkeypatch):
    monkeypatch.setattr(meta_gradient, "graphs_kept", lambda problem, flat: graphs)
    learner, data = fastmeta.MetaSGD(model_of("batch norm"), 0.3, 3), episode()
    same_gradients(learner.loss(*data), plain_losses(learner, *data), list(learner.parameters()), WEIGHTS)


@pytest.mark.parametrize("first_order", [False, True])
def test_parameters_that_stay_are_trained(first_order, at_once):
    for adapt in (["3"], ["0.bias", "3.weight"]):
        learner = fastmeta.MAML(model_of("layer norm"), 0.4, 2, adapt=adapt, first_order=first_order)
        assert learner.adapted == (["3.weight", "3.bias"] if adapt == ["3"] else adapt)
        data, params = episode(), list(learner.parameters())
        same_gradients(learner.loss(*data), plain_losses(learner, *data), params, WEIGHTS)
        sx, sy, qx, qy = data
        from_outputs = torch.stack([F.cross_entropy(o, y) for o, y in zip(learner(sx, sy, qx), qy, strict=True)])
        same_gradients(from_outputs, plain_losses(learner, *data), params, WEIGHTS)


def test_head_alone_equals_anil(at_once):
    body, head = nn.Linear(6, 5).to(D), nn.Linear(5, 3).to(D)
    together = fastmeta.MAML(nn.Sequential(body, nn.Sigmoid(), head), 0.4, 2, adapt=["2"])
    anil, data = fastmeta.ANIL(nn.Sequential(body, nn.Sigmoid()), head, 0.4, 2), episode()
    inputs = [*body.parameters(), *head.parameters()]
    same_gradients(together.loss(*data), anil.loss(*data), inputs, WEIGHTS)


def test_frozen_parameters_stay(at_once):
    learner = fastmeta.MetaSGD(model_of("layer norm").requires_grad_(False), 0.4, 2, loss="cross_entropy")
    assert learner.adapted == [] and not learner.loss(*episode()).requires_grad
    model = model_of("layer norm")
    model[0].requires_grad_(False)
    learner, data = fastmeta.MetaSGD(model, 0.4, 2), episode()
    params = [p for p in learner.parameters() if p.requires_grad]
    same_gradients(learner.loss(*data), plain_losses(learner, *data), params, WEIGHTS)


def test_targets_have_gradients(at_once):
    learner = fastmeta.MAML(model_of("layer norm"), 0.2, 2, loss="mse")
    sx, _, qx, _ = episode()
    sy, qy = (torch.randn(*x.shape[:2], 3, dtype=D, requires_grad=True) for x in (sx, qx))
    plain = plain_losses(learner, sx, sy, qx, qy, F.mse_loss)
    same_gradients(learner.loss(sx, sy, qx, qy), plain, [sy, qy, *learner.parameters()], WEIGHTS)


@pytest.mark.parametrize("kind", ["layer norm", "batch norm", "convolution, instance norm"])
def test_derivatives_of_the_meta_gradient(kind, at_once):
    """Along a direction: autograd through our meta-gradient against central differences of the plain one. Not against autograd
    through that: torch's third derivatives of norms are wrong."""
    learner = fastmeta.MetaSGD(model_of(kind), 0.3, 2)
    data = episode()
    params = [*learner.parameters(), data[0].requires_grad_()]
    tangents = [torch.randn_like(p) for p in params]

    def size(losses, create_graph):
        options = {"create_graph": create_graph, "allow_unused": True, "materialize_grads": True}
        return sum(g.square().sum() for g in torch.autograd.grad((losses * WEIGHTS).sum(), params, **options))

    def moved(by):
        with torch.no_grad():
            for p, v in zip(params, tangents, strict=True):
                p += by * v
        return size(plain_losses(learner, *data), False)

    def along(losses):
        found = torch.autograd.grad(size(losses, True), params, allow_unused=True, materialize_grads=True)
        return sum((g * v).sum() for g, v in zip(found, tangents, strict=True))

    def from_outputs():
        sx, sy, qx, qy = data
        return torch.stack([F.cross_entropy(o, y) for o, y in zip(learner(sx, sy, qx), qy, strict=True)])

    ours = along(learner.loss(*data)), along(from_outputs())
    truth = (moved(1e-6) - moved(-2e-6)) / 2e-6
    torch.testing.assert_close(ours, (truth, truth), rtol=1e-6, atol=1e-7)


def test_second_passes_and_checkpoints(at_once):
    learner, data = fastmeta.MAML(model_of("batch norm"), 0.3, 2), episode()
    params = list(learner.parameters())
    losses = learner.loss(*data)
    first = torch.autograd.grad(losses.sum(), params, retain_graph=True)
    again = torch.autograd.grad(losses.sum(), params)
    saved = torch.autograd.grad(checkpoint(learner.loss, *data, use_reentrant=False).sum(), params)
    for a, b, c in zip(first, again, saved, strict=True):
        assert a.equal(b) and a.equal(c)


@pytest.mark.parametrize("steps", [1, 3])
def test_random_layers_draw_the_same_numbers_on_the_way_back(steps, at_once):
    """One seed, one noise: then finite differences tell whether the way back had that of the way there."""
    net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.4), nn.Tanh(), nn.Linear(8, 3)).to(D)
    learner, data = fastmeta.MetaSGD(net, 0.3, steps), episode()
    sx, sy, qx, qy = data
    params = list(learner.parameters())
    direction = [torch.randn_like(p) for p in params]

    def from_outputs():
        return sum(F.cross_entropy(o, y) for o, y in zip(learner(sx, sy, qx), qy, strict=True))

    for value in (lambda: learner.loss(*data).sum(), from_outputs):

        def at(h, value=value):
            torch.manual_seed(7)
            with torch.no_grad():
                for p, d in zip(params, direction, strict=True):
                    p += h * d
            found = value()
            with torch.no_grad():
                for p, d in zip(params, direction, strict=True):
                    p -= h * d
            return found

        torch.manual_seed(7)
        grads = torch.autograd.grad(value(), params)
        analytic = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
        numeric = (at(1e-6) - at(-1e-6)) / 2e-6
        torch.testing.assert_close(analytic, numeric.detach(), rtol=1e-6, atol=1e-8)


def test_random_layers_refuse_derivatives_of_the_meta_gradient(at_once):
    net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.4), nn.Linear(8, 3)).to(D)
    learner = fastmeta.MAML(net, 0.3, 1)
    with pytest.raises(
        RuntimeError, match="MAML: a derivative of the meta-gradient needs a model that draws no random"
    ):
        torch.autograd.grad(learner.loss(*episode()).sum(), list(learner.parameters()), create_graph=True)


def test_a_loss_with_trained_tensors_of_its_own(at_once):
    """A module's parameters are inputs like the model's; what a function has caught is found in its graph."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.7, dtype=D))

        def forward(self, outputs, targets):
            return F.cross_entropy(self.scale * outputs, targets)

    loss = Scaled()
    for inner_loss in (loss, lambda outputs, targets: loss(outputs, targets)):
        learner, data = fastmeta.MAML(model_of("layer norm"), 0.3, 2, loss=inner_loss), episode()
        inputs = [*learner.model.parameters(), loss.scale]
        assert ("inner_loss.scale" in learner.state_dict()) == (inner_loss is loss)
        same_gradients(learner.loss(*data), plain_losses(learner, *data, inner_loss), inputs, WEIGHTS)
        sx, sy, qx, qy = data
        from_outputs = torch.stack([loss(o, y) for o, y in zip(learner(sx, sy, qx), qy, strict=True)])
        same_gradients(from_outputs, plain_losses(learner, *data, inner_loss), inputs, WEIGHTS)


class OfOneTask(torch.autograd.Function):
    """x^3, without a rule for vmap."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x**2


class Cubed(nn.Module):
    def forward(self, x):
        return OfOneTask.apply(x)


class Branches(nn.Module):
    def forward(self, x):
        return x.sin() if x.sum().item() > 0 else x.cos()


@pytest.mark.parametrize("layer", [Cubed, Branches])
def test_models_that_vmap_refuses_run_one_by_one(layer, monkeypatch):
    monkeypatch.setattr(tasks_at_once, "tasks_at_once", lambda problem, flat: 4)
    net = nn.Sequential(nn.Linear(6, 5), layer(), nn.Linear(5, 3)).to(D)
    learner, data = fastmeta.MAML(net, 0.1, 2), episode()
    for _ in range(2):
        same_gradients(learner.loss(*data), plain_losses(learner, *data), list(learner.parameters()), WEIGHTS)
        assert learner._plan().seen.learned.one_by_one


def test_a_wrong_call_does_not_change_the_way(monkeypatch):
    monkeypatch.setattr(tasks_at_once, "tasks_at_once", lambda problem, flat: 4)
    learner = fastmeta.MAML(model_of("layer norm"), 0.1, 2)
    with pytest.raises(RuntimeError, match="size|shapes cannot be multiplied"):
        learner(torch.randn(4, 6, 7, dtype=D), torch.zeros(4, 6, dtype=torch.int64), torch.randn(4, 7, 7, dtype=D))
    assert not learner._plan().seen.learned.one_by_one


@pytest.mark.parametrize("chunk", [1, 2, 3, None])
def test_chunks_of_tasks(chunk):
    learner, data = fastmeta.MAML(model_of("layer norm"), 0.3, 2, task_chunk=chunk), episode()
    same_gradients(learner.loss(*data), plain_losses(learner, *data), list(learner.parameters()), WEIGHTS)


def test_small_models_run_at_once_and_large_ones_one_by_one():
    """What the tests above force, the engine chooses by the size of a task's graph."""
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(torch._C._functorch.is_batchedtensor(x))
            return x

    for width, expected in ((8, True), (4096, False)):
        seen.clear()
        net = nn.Sequential(nn.Linear(6, width), Spy(), nn.LayerNorm(width), nn.Linear(width, 3)).to(D)
        fastmeta.MAML(net, 0.1, 1).loss(*episode(queries=300))
        assert seen[-1] is expected


def test_no_gradient_keeps_no_graph(at_once):
    learner, data = fastmeta.MAML(model_of("batch norm"), 0.3, 2), episode()
    with torch.no_grad():
        losses, outputs = learner.loss(*data), learner(*data[:3])
    assert not losses.requires_grad and not outputs.requires_grad
    torch.testing.assert_close(losses, plain_losses(learner, *data).detach())


def test_graphs_do_not_grow_with_the_steps(monkeypatch):
    """The largest number of elements that graphs hold at a time, but for the parameters of each step."""
    monkeypatch.setattr(tasks_at_once, "tasks_at_once", lambda problem, flat: 1)
    monkeypatch.setattr(meta_gradient, "graphs_kept", lambda problem, flat: 1)

    def most_held(steps):
        held, most = 0, 0

        class Held:
            def __init__(self, x):
                nonlocal held, most
                self.x, self.size = x, x.numel()
                held += self.size
                most = max(most, held)

            def __del__(self):
                nonlocal held
                held -= self.size

        learner = fastmeta.MAML(model_of("batch norm"), 0.3, steps)
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda kept: kept.x):
            learner.loss(*episode()).sum()
        return most

    assert most_held(12) == most_held(2) > most_held(0)


def test_under_torch_func(at_once):
    """functional_call of the learner under torch.func.grad, alone and under vmap, where torch's own batch norm is wrong."""
    learner, data = fastmeta.MAML(model_of("batch norm"), 0.3, 2), episode()
    params = {name: p.detach() for name, p in learner.named_parameters()}
    truth = torch.autograd.grad(plain_losses(learner, *data).sum(), list(learner.parameters()))

    value = loss_by_params(learner)
    found = torch.func.grad(value)(params, *data)
    of_tasks = torch.vmap(torch.func.grad(value), (None, 0, 0, 0, 0))(params, *(x.unsqueeze(1) for x in data))
    for name, expected in zip(params, truth, strict=True):
        torch.testing.assert_close(found[name], expected, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(of_tasks[name].sum(0), expected, rtol=1e-8, atol=1e-10)


def test_under_compile():
    torch._dynamo.reset()
    learner, data = fastmeta.MetaSGD(model_of("layer norm"), 0.3, 2), episode(tasks=2)
    compiled = torch.compile(lambda *data: learner.loss(*data), fullgraph=True)
    same_gradients(compiled(*data), plain_losses(learner, *data), list(learner.parameters()), WEIGHTS[:2])


def test_under_autocast(at_once):
    learner = fastmeta.MAML(model_of("layer norm").float(), 0.1, 2)
    data = [x.float() if x.is_floating_point() else x for x in episode()]
    params = list(learner.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = learner.loss(*data), plain_losses(learner, *data)
        sx, sy, qx, qy = data
        outputs = learner(sx, sy, qx)
        from_outputs = torch.stack([F.cross_entropy(o.float(), y) for o, y in zip(outputs, qy, strict=True)])
    truth = torch.autograd.grad(plain.sum(), params)
    exact = torch.autograd.grad(plain_losses(learner, *data).sum(), params)
    for losses in (ours, from_outputs):
        for a, b, c in zip(torch.autograd.grad(losses.sum(), params), truth, exact, strict=True):
            assert (a - c).norm() <= 2 * (b - c).norm() + 1e-3 * c.norm()


def test_running_statistics_are_converted():
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).to(D)
    with pytest.raises(ValueError, match="call fastmeta.use_batch_statistics"):
        fastmeta.MAML(net)
    assert fastmeta.use_batch_statistics(net) is net
    learner, data = fastmeta.MAML(net, 0.2, 2), episode()
    same_gradients(learner.loss(*data), plain_losses(learner, *data), list(learner.parameters()), WEIGHTS)
    assert copy.deepcopy(learner).loss(*data).equal(learner.loss(*data))
    instance = nn.Sequential(nn.InstanceNorm1d(5, track_running_stats=True))
    with pytest.raises(ValueError, match="MAML: batch norm must use the statistics of each batch"):
        fastmeta.MAML(instance)


def test_errors():
    sx, sy, qx, qy = episode()
    general = lambda **options: fastmeta.MAML(model_of("layer norm"), **options)  # noqa: E731
    with pytest.raises(
        ValueError, match="MAML: adapt must name parameters with requires_grad, or modules with some, got 'x'"
    ):
        general(adapt=["x"])
    with pytest.raises(ValueError, match="MAML: adapt must be a sequence of names of parameters or modules, got '3'"):
        general(adapt="3")
    with pytest.raises(ValueError, match="MAML: task_chunk must be None or a whole number, 1 or more, got 0"):
        general(task_chunk=0)
    with pytest.raises(
        ValueError, match=r"MAML: loss must return a 0-dim tensor for the examples of a task, got shape \[6\]"
    ):
        general(loss=lambda o, y: F.cross_entropy(o, y, reduction="none")).loss(sx, sy, qx, qy)
    with pytest.raises(ValueError, match=r"MAML: lr must have shape \[\] or \[2\], got \[3\]"):
        general(lr=torch.ones(3, dtype=D), steps=2).loss(sx, sy, qx, qy)
    assert general().loss(sx[:0], sy[:0], qx[:0], qy[:0]).shape == (0,)

"""The general engine: any module, any loss, several tasks at once or one by one, against the plain loop."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta
from harness.engine import force_graphs_kept, force_tasks_at_once, kernels_of
from harness.plain_loops import (
    OPTIONS,
    WEIGHTS,
    D,
    check_slope,
    episode,
    losses_of,
    plain_losses,
    same_as_the_plain_loop,
)


class Attends(nn.Module):
    """Two inputs as a sequence of two."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Linear(3, 4), nn.Linear(4, 3)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

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


def perceptron(*between):
    return nn.Sequential(nn.Linear(6, 5), *between, nn.Linear(5, 3))


MODELS = {
    "linear": lambda: nn.Sequential(nn.Sequential(nn.Linear(6, 5), nn.Softsign()), nn.Linear(5, 3)),
    "layer norm": lambda: perceptron(nn.LayerNorm(5), nn.GELU()),
    "batch norm": lambda: perceptron(nn.BatchNorm1d(5, track_running_stats=False), nn.Tanh()),
    "convolution, batch norm": lambda: convolutional(nn.BatchNorm2d(4, track_running_stats=False)),
    "convolution, instance norm": lambda: convolutional(nn.InstanceNorm2d(4, affine=True)),
    "convolution, group norm": lambda: convolutional(nn.GroupNorm(2, 4)),
    "attention": Attends,
    "tied": Tied,
    "prelu": lambda: perceptron(nn.PReLU(5)),
}


def model_of(kind):
    torch.manual_seed(5)
    return MODELS[kind]().to(D)


FEWER = [(kind, steps, False) for kind in ("layer norm", "attention") for steps in (0, 1)]


@pytest.mark.parametrize(
    ("kind", "steps", "first_order"), [(kind, 3, order) for kind in MODELS for order in (False, True)] + FEWER
)
def test_meta_gradients_of_any_module(kind, steps, first_order, at_once):
    rates = nn.Parameter(torch.rand(steps, dtype=D))
    for learner in (
        fastmeta.MAML(model_of(kind), rates, steps, first_order=first_order),
        fastmeta.MetaSGD(model_of(kind), 0.3, steps, first_order=first_order),
    ):
        assert kernels_of(learner) is None
        data = episode()
        same_as_the_plain_loop(learner, data, data[0].requires_grad_(), data[2].requires_grad_())


@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.0, -1.0), (1.0, 2.0, 0.0)])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("learned", [True, False], ids=["learned rates", "fixed rates"])
def test_losses_after_every_step(learned, weights, first_order, at_once):
    rates, options = torch.rand(len(weights), dtype=D), {"first_order": first_order, "loss_weights": weights}
    learner = fastmeta.MAML(model_of("linear"), nn.Parameter(rates) if learned else rates, len(weights), **options)
    data = episode()
    inputs = [*learner.parameters(), data[0].requires_grad_(), data[2].requires_grad_()]
    same_as_the_plain_loop(learner, data, *inputs[-2:])
    plain = plain_losses(learner, *data).detach()
    with torch.no_grad():
        torch.testing.assert_close(learner.loss(*data), plain)
    if not first_order:
        both = (learner.loss, partial(plain_losses, learner))
        twice = [torch.autograd.grad(of(*data).sum(), inputs, create_graph=True) for of in both]
        found = [torch.autograd.grad(sum(g.square().sum() for g in grads), inputs) for grads in twice]
        torch.testing.assert_close(*found, rtol=1e-8, atol=1e-9)


def test_weights_of_the_steps_are_checked_and_may_change():
    learner, data = fastmeta.MAML(perceptron(nn.ReLU()).to(D), 0.1, 2), episode()
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
    force_graphs_kept(monkeypatch, graphs)
    same_as_the_plain_loop(fastmeta.MetaSGD(model_of("batch norm"), 0.3, 3), episode())


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("adapt", [["3"], ["0.bias", "3.weight"]])
def test_parameters_that_stay_are_trained(adapt, first_order, at_once):
    learner = fastmeta.MAML(model_of("layer norm"), 0.4, 2, adapt=adapt, first_order=first_order)
    assert learner.adapted == (["3.weight", "3.bias"] if adapt == ["3"] else adapt)
    same_as_the_plain_loop(learner, episode())


def test_frozen_parameters_stay(at_once):
    learner, data = fastmeta.MetaSGD(model_of("layer norm").requires_grad_(False), 0.4, 2), episode()
    assert learner.adapted == [] and not learner.loss(*data).requires_grad
    model = model_of("layer norm")
    model[0].requires_grad_(False)
    same_as_the_plain_loop(fastmeta.MetaSGD(model, 0.4, 2), data)


def test_targets_have_gradients(at_once):
    learner, (sx, _, qx, _) = fastmeta.MAML(model_of("layer norm"), 0.2, 2, loss="mse"), episode()
    sy, qy = (torch.randn(*x.shape[:2], 3, dtype=D, requires_grad=True) for x in (sx, qx))
    same_as_the_plain_loop(learner, (sx, sy, qx, qy), sy, qy, loss=F.mse_loss)


@pytest.mark.parametrize("kind", ["layer norm", "batch norm", "convolution, instance norm"])
def test_derivatives_of_the_meta_gradient(kind, at_once):
    """Autograd through our meta-gradient against differences of it. (Torch's third derivatives of norms are wrong.)"""
    learner, data = fastmeta.MetaSGD(model_of(kind), 0.3, 2), episode()
    params = [*learner.parameters(), data[0].requires_grad_()]

    def size(losses):
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            grads = torch.autograd.grad((losses() * WEIGHTS).sum(), params, create_graph=create_graph, **OPTIONS)
        return sum(g.square().sum() for g in grads)

    check_slope(lambda: size(lambda: learner.loss(*data)), params)
    check_slope(lambda: size(lambda: losses_of(learner(*data[:3]), data[3])), params)


def test_a_second_pass_gives_the_same_bits(at_once):
    learner, data = fastmeta.MAML(model_of("batch norm"), 0.3, 2), episode()
    params, losses = list(learner.parameters()), learner.loss(*data).sum()
    first = torch.autograd.grad(losses, params, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(losses, params)))


@pytest.mark.parametrize("steps", [1, 3])
def test_random_layers_draw_the_same_numbers_on_the_way_back(steps, at_once):
    """One seed, one noise: then finite differences tell whether the way back had that of the way there."""
    learner, data = fastmeta.MetaSGD(perceptron(nn.Dropout(0.4), nn.Tanh()).to(D), 0.3, steps), episode()

    def seeded(value):
        torch.manual_seed(7)
        return value().sum()

    for value in (lambda: learner.loss(*data), lambda: losses_of(learner(*data[:3]), data[3])):
        check_slope(partial(seeded, value), list(learner.parameters()))


def test_random_layers_refuse_derivatives_of_the_meta_gradient(at_once):
    learner = fastmeta.MAML(perceptron(nn.Dropout(0.4)).to(D), 0.3, 1)
    words = "MAML: a derivative of the meta-gradient needs a model that draws no random"
    with pytest.raises(RuntimeError, match=words):
        torch.autograd.grad(learner.loss(*episode()).sum(), list(learner.parameters()), create_graph=True)


class Scaled(nn.Module):
    """A loss with a tensor that is trained."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=D))

    def forward(self, outputs, targets):
        return F.cross_entropy(self.scale * outputs, targets)


def test_a_loss_with_trained_tensors_of_its_own(at_once):
    """A module's parameters are inputs like the model's; what a function has caught is found in its graph."""
    loss = Scaled()
    for inner_loss in (loss, lambda outputs, targets: loss(outputs, targets)):
        learner = fastmeta.MAML(model_of("layer norm"), 0.3, 2, loss=inner_loss)
        assert ("inner_loss.scale" in learner.state_dict()) == (inner_loss is loss)
        same_as_the_plain_loop(learner, episode(), *([] if inner_loss is loss else [loss.scale]), loss=inner_loss)


@pytest.mark.parametrize("chunk", [1, 2, 3, None])
def test_chunks_of_tasks(chunk):
    same_as_the_plain_loop(fastmeta.MAML(model_of("layer norm"), 0.3, 2, task_chunk=chunk), episode())


def test_small_models_run_at_once_and_large_ones_one_by_one():
    """What the tests above force, the engine chooses by the size of a task's graph."""
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(torch._C._functorch.is_batchedtensor(x))
            return x

    for width, expected in ((8, True), (4096, False)):
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
    force_tasks_at_once(monkeypatch, 1)
    force_graphs_kept(monkeypatch, 1)

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


def test_running_statistics_are_converted():
    net = perceptron(nn.BatchNorm1d(5)).to(D)
    with pytest.raises(
        ValueError, match=r"MAML: batch norm must .*, got running statistics in '1'.*use_batch_statistics"
    ):
        fastmeta.MAML(net)
    assert fastmeta.use_batch_statistics(net) is net
    same_as_the_plain_loop(fastmeta.MAML(net, 0.2, 2), episode())
    with pytest.raises(ValueError, match="MAML: batch norm must use the statistics of each batch"):
        fastmeta.MAML(nn.Sequential(nn.InstanceNorm1d(5, track_running_stats=True)))


def test_errors():
    data = episode()
    for options, words in (
        ({"adapt": ["x"]}, "adapt must name parameters with requires_grad, or modules with some, got 'x'"),
        ({"adapt": "3"}, "adapt must be a sequence of names of parameters or modules, got '3'"),
        ({"task_chunk": 0}, "task_chunk must be None or a whole number, 1 or more, got 0"),
        ({"lr": torch.ones(3, dtype=D), "steps": 2}, r"lr must have shape \[\] or \[2\], got \[3\]"),
        (
            {"loss": lambda o, y: F.cross_entropy(o, y, reduction="none")},
            r"loss must return a 0-dim tensor for the examples of a task, got shape \[6\]",
        ),
    ):
        with pytest.raises(ValueError, match=f"MAML: {words}"):
            fastmeta.MAML(model_of("layer norm"), **options).loss(*data)

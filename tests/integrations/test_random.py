"""Random programs on the swap, on the library, and on it accelerated: the same losses, meta-gradients, buffers and state keys."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.integrations import accelerate, higher, learn2learn, torchopt
from harness.installed_peers import peer
from harness.programs import size_fixture  # noqa: F401  (a fixture)

SEEDS = range(16)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.LSTM(4, 3)

    def forward(self, x):
        return self.cells(x[None])[0][0]


class Tied(nn.Module):
    """A module and a weight that are used twice, and parts that are not used."""

    def __init__(self):
        super().__init__()
        self.a = self.again = nn.Linear(4, 4)
        self.b, self.c, self.unused = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(2, 2)
        self.b.weight = self.a.weight
        self.register_parameter("none", None)
        self.register_buffer("learned", torch.randn(3).requires_grad_())

    def forward(self, x):
        return self.c(self.b(self.again(self.a(x).tanh()).tanh()).tanh()) + self.learned


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)),
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.4), nn.SiLU(), nn.Linear(6, 3)),
    "parametrized": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 3)),
    "lstm": Recurrent,
    "tied": Tied,
}


class Program:
    """What the choices of one seed share."""

    def __init__(self, seed, models, frozen):
        self.choose = random.Random(seed)
        torch.manual_seed(seed)
        self.model = MODELS[self.choose.choice(models)]().double()
        for p in list(self.model.parameters())[1:]:
            p.requires_grad_(not frozen or self.choose.random() > 0.15)
        self.learned = [p for p in self.model.parameters() if p.requires_grad]

    def maybe(self, share):
        return self.choose.random() < share

    def loss(self, model, **options):
        x, y = torch.randn(6, 4).double(), torch.randn(6, 3).double()
        return F.mse_loss(model(x, **options), y)

    def found(self, loss, learned, model):
        grads = torch.autograd.grad(loss, learned, allow_unused=True, materialize_grads=True)
        return [loss.detach(), *grads, *(b.detach().clone() for b in model.buffers())], list(model.state_dict())


def of_learn2learn(l2l, seed):
    run = Program(seed, list(MODELS), frozen=True)
    lr, first_order = run.choose.choice([0.1, torch.tensor(0.1).double().requires_grad_()]), run.maybe(0.3)
    options = {"first_order": first_order, "allow_nograd": True}
    learner = l2l.algorithms.MAML(run.model, lr=lr, **options)
    total = 0
    for _ in range(2):
        clone = learner.clone().clone() if run.maybe(0.3) else learner.clone()
        for _ in range(run.choose.randint(0, 3)):
            clone.adapt(run.loss(clone))
            clone = clone.clone() if run.maybe(0.2) else clone
        total = total + run.loss(clone)
    rates = [lr] if isinstance(lr, torch.Tensor) else []
    return run.found(total, [*run.learned, *rates], run.model)


def of_meta_sgd(l2l, seed):
    """learn2learn's own separates shared modules here."""
    run = Program(seed, list(MODELS)[:-1], frozen=False)
    learner = l2l.algorithms.MetaSGD(run.model, lr=0.1, first_order=run.maybe(0.3))
    clone = learner.clone()
    for _ in range(run.choose.randint(1, 3)):
        clone.adapt(run.loss(clone))
    return run.found(run.loss(clone), [*run.learned, *learner.lrs], run.model)


def an_optimiser(run):
    params = list(run.model.parameters())
    run.choose.shuffle(params)
    params = params[: len(params) - run.maybe(0.3)]
    groups = [{"params": params[:1], "lr": 0.02}, {"params": params[1:]}]
    decay = run.choose.choice([0, 0.1])
    if run.maybe(0.3):
        return torch.optim.Adam(groups, lr=0.05, betas=(0.5, 0.9), eps=1e-3, weight_decay=decay, amsgrad=run.maybe(0.3))
    momentum = run.choose.choice([0, 0, 0.9])
    nesterov = momentum > 0 and run.maybe(0.3)
    return torch.optim.SGD(groups, lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=decay)


def of_higher(library, seed, models=tuple(MODELS), frozen=True):
    run = Program(seed, models, frozen)
    inner, copied = an_optimiser(run), run.maybe(0.5)
    rates = [torch.tensor(0.07).double().requires_grad_() for _ in range(2)]
    override = {"lr": rates} if run.maybe(0.5) else None
    options = {"copy_initial_weights": copied, "override": override}
    callback = (lambda grads: [None if g is None else g / 2 for g in grads]) if run.maybe(0.3) else None
    with library.innerloop_ctx(run.model, inner, **options) as (fmodel, diffopt):
        for _ in range(run.choose.randint(0, 3)):
            given = {"params": [0.99 * p for p in fmodel.fast_params]} if run.maybe(0.2) else {}
            diffopt.step(run.loss(fmodel, **given), grad_callback=callback)
        learned = [p for p in fmodel.parameters(time=0) if p.requires_grad] if copied else run.learned
        return run.found(run.loss(fmodel), [*learned, *(rates if override else [])], fmodel)


def of_torchopt(library, seed, models=tuple(MODELS)[:-1]):
    """TorchOpt's own separates shared parameters."""
    run = Program(seed, models, frozen=False)
    options = {"lr": 0.1, "weight_decay": run.choose.choice([0.0, 0.1]), "maximize": run.maybe(0.2)}
    if run.maybe(0.3):
        inner = library.MetaAdam(run.model, **options, betas=(0.5, 0.75), eps=1e-3, eps_root=1e-4)
    else:
        momentum = run.choose.choice([0.0, 0.0, 0.9])
        inner = library.MetaSGD(run.model, **options, momentum=momentum, nesterov=momentum > 0 and run.maybe(0.3))
    by = run.choose.choice(["reference", "copy"])
    start = [library.extract_state_dict(part, by=by) for part in (run.model, inner)]
    total = 0
    for _ in range(2):
        for _ in range(run.choose.randint(0, 3)):
            inner.step(run.loss(run.model))
        total = total + run.loss(run.model)
        for part, state in zip((run.model, inner), start, strict=True):
            library.recover_state_dict(part, state)
    return run.found(total, run.learned, run.model)


def of_mlp_in_higher(library, seed):
    """Most of what it does is recorded."""
    return of_higher(library, seed, ["mlp"], frozen=False)


def of_mlp_in_torchopt(library, seed):
    return of_torchopt(library, seed, ["mlp"])


def of_clone_module(l2l, seed):
    run = Program(seed, ["mlp", "batch norm"], frozen=False)
    first_order, total = run.maybe(0.3), 0
    for _ in range(2):
        clone = l2l.clone_module(run.model)
        for _ in range(run.choose.randint(0, 3)):
            params, rate = list(clone.parameters()), run.choose.choice([0.1, 0.2])
            grads = torch.autograd.grad(run.loss(clone), params, create_graph=not first_order)
            if run.maybe(0.2):
                total = total + 0.1 * sum(x.square().sum() for x in (params if run.maybe(0.5) else grads))
            if run.maybe(0.5):
                clone = l2l.algorithms.maml.maml_update(clone, rate, grads)
            else:
                clone = l2l.update_module(clone, updates=[-rate * g for g in grads])
            clone = l2l.clone_module(clone) if run.maybe(0.2) else clone
        total = total + run.loss(clone)
    return run.found(total, run.learned, run.model)


PROGRAMS = {
    of_learn2learn: learn2learn,
    of_meta_sgd: learn2learn,
    of_higher: higher,
    of_torchopt: torchopt,
    of_mlp_in_higher: higher,
    of_mlp_in_torchopt: torchopt,
    of_clone_module: learn2learn,
}


@pytest.fixture(autouse=True)
def all_digits():
    """TorchOpt and torch.optim.Adam raise betas to powers in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_random_program(program, seed):
    swap = PROGRAMS[program]
    library = peer(swap.__name__.rpartition(".")[2])
    expected = program(library, seed)
    with accelerate(library):
        accelerated = program(library, seed)
    for found in (program(swap, seed), accelerated):
        torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-11)
        assert found[1] == expected[1]

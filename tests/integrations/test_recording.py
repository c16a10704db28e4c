"""Recorded programs compute what they compute operation by operation, whatever happens between recording and the need of a value."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.integrations import explain, higher, torchopt
from fastmeta.integrations.learn2learn.algorithms import MAML, MetaSGD
from fastmeta.integrations.recording import report

TASKS, WAYS = 3, 4


def net(width=6):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, WAYS)).double()


class Functional(nn.Module):
    """As users write it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(3, 6).double(), nn.Linear(6, WAYS).double()

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


def conv():
    torch.manual_seed(1)
    block = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*block, nn.Flatten(), nn.Linear(4 * 9, WAYS)).double()


def task(images=False):
    shape = (1, 6, 6) if images else (3,)
    of = [(torch.randn(8, *shape).double(), torch.randint(0, WAYS, (8,))) for _ in range(2)]
    return (*of[0], *of[1])


def trained(learner, of_iteration, iterations=3, others=()):
    """What the iterations return, the gradients and the parameters in the end."""
    optimiser = torch.optim.SGD([*learner.parameters(), *others], 0.1)
    torch.manual_seed(0)
    found = []
    for _ in range(iterations):
        optimiser.zero_grad()
        found += [torch.as_tensor(x).detach().double().clone() for x in of_iteration(learner)]
        optimiser.step()
    of_parameters = [
        x.detach().clone()
        for p in [*learner.parameters(), *others]
        for x in (p, torch.zeros_like(p) if p.grad is None else p.grad)
    ]
    return found + of_parameters


def both(monkeypatch, program):
    """`program()` recorded and not; what explain() says of the former."""
    explain(clear=True)
    found = program()
    ways = {}
    for way, count, _, why in explain(clear=True):
        ways.setdefault(way, []).append((count, why))
    monkeypatch.setattr(report, "ON", False)
    torch.testing.assert_close(found, program(), rtol=1e-9, atol=1e-11)
    return ways


def adapted(clone, x, y, steps, loss=F.cross_entropy):
    for _ in range(steps):
        clone.adapt(loss(clone(x), y))
    return clone


def losses(learner, steps=2, images=False, loss=F.cross_entropy, **options):
    for _ in range(TASKS):
        x, y, query_x, query_y = task(images)
        clone = adapted(learner.clone(**options), x, y, steps, loss)
        yield loss(clone(query_x), query_y)


def summed(learner, **options):
    total = 0.0
    for loss in losses(learner, **options):
        total += loss
    total /= TASKS
    total.backward()
    return [total.item()]


def stacked(learner, **options):
    total = torch.stack(list(losses(learner, **options))).mean()
    total.backward()
    return [total]


def by_grad(learner, **options):
    total = torch.stack(list(losses(learner, **options))).sum()
    params = list(learner.parameters())
    value = total.detach()
    for p, g in zip(params, torch.autograd.grad(total, params, allow_unused=True), strict=True):
        p.grad = g
    return [value]


def weighted(learner, **options):
    """A sum that is not recorded."""
    total = (torch.stack(list(losses(learner, **options))) * torch.arange(1.0, 1 + TASKS).double()).sum()
    total.backward()
    return [total]


def alone(learner, **options):
    found = []
    for loss in losses(learner, **options):
        loss.backward()
        found.append(loss.item())
    return found


def with_accuracy(learner, steps=2, images=False, before=True):
    """Accuracy on the side, before the way back or after it."""
    found = []
    for _ in range(TASKS):
        x, y, query_x, query_y = task(images)
        clone = adapted(learner.clone(), x, y, steps)
        outputs = clone(query_x)
        loss = F.cross_entropy(outputs, query_y)
        hits = (outputs.argmax(1) == query_y).sum() if before else None
        loss.backward()
        found += [loss.item(), (outputs.argmax(1) == query_y).sum() if hits is None else hits]
    return found


LEARNERS = {
    "maml": lambda: MAML(net(), 0.1),
    "first order": lambda: MAML(net(), 0.1, first_order=True),
    "learned rate": lambda: MAML(net(), nn.Parameter(torch.tensor(0.1).double())),
    "meta-sgd": lambda: MetaSGD(net(), 0.1),
    "functional": lambda: MAML(Functional(), 0.1, allow_unused=True),
    "deep": lambda: MAML(nn.Sequential(nn.Flatten(), *net()), 0.1),
}
WAYS_BACK = {
    "summed": summed,
    "stacked": stacked,
    "by grad": by_grad,
    "weighted": weighted,
    "alone": alone,
    "accuracy": with_accuracy,
}


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("way", WAYS_BACK)
@pytest.mark.parametrize("name", LEARNERS)
def test_programs(monkeypatch, name, way, steps):
    def program():
        learner = LEARNERS[name]()
        rate = getattr(learner, "lr", None)
        others = [rate] if isinstance(rate, nn.Parameter) and not any(rate is p for p in learner.parameters()) else []
        return trained(learner, lambda learner: WAYS_BACK[way](learner, steps=steps), others=others)

    ways = both(monkeypatch, program)
    expected = "alone" if way in ("alone", "accuracy") else "batched"
    assert expected in ways and "plain" not in ways, ways
    assert "replayed" not in ways or way == "weighted", ways


@pytest.mark.parametrize("way", ["summed", "alone", "accuracy"])
def test_convolutional_networks(monkeypatch, way):
    ways = both(
        monkeypatch, lambda: trained(MAML(conv(), 0.1), lambda learner: WAYS_BACK[way](learner, images=True), 2)
    )
    assert {*ways} == {"batched" if way == "summed" else "alone"}, ways


def test_squares(monkeypatch):
    """Of [n, C] outputs, by the module."""
    square = nn.MSELoss()

    def iteration(learner):
        total = 0
        for _ in range(TASKS):
            x, y = torch.randn(2, 8, 3).double(), torch.randn(2, 8, WAYS).double()
            total = total + square(adapted(learner.clone(), x[0], y[0], 2, square)(x[1]), y[1])
        total.backward()
        return [total]

    assert {*both(monkeypatch, lambda: trained(MAML(net(), 0.1), iteration))} == {"batched"}


def in_higher(model, way, learned=False, steps=2, **options):
    """TASKS tasks on `innerloop_ctx`."""
    inner = torch.optim.SGD([{"params": [p]} for p in model.parameters()] if learned else model.parameters(), lr=0.1)
    override = {"lr": [model.rates[f"{i}"] for i in range(4)]} if learned else None
    found, total = [], 0
    for _ in range(TASKS):
        x, y, query_x, query_y = task()
        with higher.innerloop_ctx(model.body, inner, override=override, **options) as (fmodel, diffopt):
            assert isinstance(fmodel, nn.Sequential)
            for _ in range(steps):
                after = diffopt.step(F.cross_entropy(fmodel(x[:]), y))
            outputs = fmodel(query_x)
            loss = F.cross_entropy(outputs, query_y)
            if way == "accuracy":
                found += [(outputs.argmax(1) == query_y).sum(), loss.detach()]
            if way == "asked":
                found += [after[0].sum(), sum(p.sum() for p in fmodel.parameters()), len(diffopt.param_groups)]
            if way == "initial":
                for p, g in zip(
                    model.body.parameters(), torch.autograd.grad(loss, fmodel.parameters(time=0)), strict=True
                ):
                    p.grad = g
                continue
        if way == "summed":
            total = total + loss
        elif way != "evaluated":
            loss.backward()
        found += [] if way == "summed" else [loss.item()]
    if way == "summed":
        total.backward()
        found.append(total)
    return found


class WithRates(nn.Module):
    def __init__(self, shaped):
        super().__init__()
        self.body = net()
        shapes = [p.shape if shaped else () for p in self.body.parameters()]
        self.rates = nn.ParameterDict({f"{i}": nn.Parameter(torch.full(s, 0.1).double()) for i, s in enumerate(shapes)})

    def parameters(self, recurse=True):
        return self.body.parameters(recurse)


@pytest.mark.parametrize(
    ("way", "options", "expected"),
    [
        ("summed", {"copy_initial_weights": False}, {"batched"}),
        ("alone", {"copy_initial_weights": False}, {"alone"}),
        ("accuracy", {"copy_initial_weights": False}, {"alone"}),
        ("summed", {"copy_initial_weights": False, "learned": True, "shaped": True}, {"batched"}),
        ("alone", {"copy_initial_weights": True, "learned": True}, {"alone"}),
        ("summed", {"copy_initial_weights": True, "learned": True}, {"alone"}),
        ("evaluated", {"track_higher_grads": False}, {"alone"}),
        ("asked", {"copy_initial_weights": False}, {"plain", "alone"}),
        ("initial", {}, {"plain"}),
    ],
)
def test_higher(monkeypatch, way, options, expected):
    options = dict(options)
    shaped = options.pop("shaped", False)

    def program():
        model = WithRates(shaped)
        of_rates = list(model.rates.values()) if "learned" in options else []
        return trained(model, lambda model: in_higher(model, way, **options), others=of_rates)

    ways = both(monkeypatch, program)
    assert {*ways} <= expected | {"replayed"} and {*ways} & expected, ways


def in_torchopt(model, way, steps=2):
    """TASKS tasks on a MetaSGD, which steps the parameters in the model itself."""
    inner = torchopt.MetaSGD(model, lr=0.1)
    start = torchopt.extract_state_dict(model, by="copy" if way == "copied" else "reference")
    found, total = [], 0
    for i in range(TASKS):
        x, y, query_x, query_y = task()
        for _ in range(steps):
            inner.step(F.cross_entropy(model(x[:]), y))
        outputs = model(query_x)
        loss = F.cross_entropy(outputs, query_y)
        if way == "accuracy":
            found += [(outputs.argmax(1) == query_y).sum(), loss.detach()]
        if way == "asked":
            found += [sum(p.sum() for p in model.parameters()), model[0].weight.sum(), len(model.state_dict())]
        if way == "two" and i == 1:
            torchopt.MetaAdam(model[2], lr=0.1).step(loss)
            loss = F.cross_entropy(model(query_x), query_y)
        if way in ("summed", "copied", "two"):
            total = total + loss
        else:
            loss.backward()
            found.append(loss.item())
        if way == "kept" and i == 1:
            kept = torchopt.extract_state_dict(model, by="deepcopy")
            found += [held.sum() for of_part in kept.params for held in of_part.values()]
        torchopt.recover_state_dict(model, start)
    assert all(isinstance(p, nn.Parameter) for p in model.parameters()) or way == "copied"
    if way in ("summed", "copied", "two"):
        total.backward()
        found.append(total)
    again = copy.deepcopy(model)
    with torch.no_grad():
        found.append(again(query_x).sum())
    return found


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("summed", {"batched"}), ("alone", {"alone"}), ("accuracy", {"alone"}), ("asked", {"plain"}), ("two", {"plain", "batched"}),
        ("kept", {"plain", "alone"}),
    ],
)  # fmt: skip
def test_torchopt(monkeypatch, way, expected):
    ways = both(monkeypatch, lambda: trained(net(), lambda model: in_torchopt(model, way)))
    assert expected <= {*ways} <= expected | {"replayed", "alone"}, ways
    assert "replayed" not in ways or way in ("two", "asked"), ways


def with_statistics():
    model = conv()
    model[1] = nn.BatchNorm2d(4, momentum=0.3).double()
    return model


@pytest.mark.parametrize("asked", [False, True])
def test_running_statistics_in_higher(monkeypatch, asked):
    """They are those of the copy; batches make the outputs."""

    def iteration(model):
        inner, found = torch.optim.SGD(model.parameters(), lr=0.1), []
        for _ in range(TASKS):
            x, y, query_x, query_y = task(images=True)
            with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (fmodel, diffopt):
                for _ in range(2):
                    diffopt.step(F.cross_entropy(fmodel(x), y))
                loss = F.cross_entropy(fmodel(query_x), query_y)
                loss.backward()
                found += [loss.item(), *(b.double().sum() for b in fmodel.buffers())] if asked else [loss.item()]
        return [*found, *(b.double().sum() for b in model.buffers())]

    ways = both(monkeypatch, lambda: trained(with_statistics(), iteration, 2))
    assert {*ways} == ({"alone", "plain"} if asked else {"alone"}), ways


@pytest.mark.parametrize("options", [{"by": "reference"}, {"by": "reference", "detach_buffers": True}, {"by": "copy"}])
def test_running_statistics_in_torchopt(monkeypatch, options):
    def iteration(model):
        inner, found = torchopt.MetaSGD(model, lr=0.1), []
        start = torchopt.extract_state_dict(model, **options)
        for i in range(TASKS):
            x, y, query_x, query_y = task(images=True)
            for _ in range(2):
                inner.step(F.cross_entropy(model(x), y))
            loss = F.cross_entropy(model(query_x), query_y)
            loss.backward()
            found += [loss.item(), *(b.double().sum() for b in model.buffers())] if i == 1 else [loss.item()]
            torchopt.recover_state_dict(model, start)
            found += [b.double().sum() for b in model.buffers()] if i == 2 else []
        return found

    def program():
        model = with_statistics()
        return trained(nn.ParameterList(model.parameters()), lambda _: iteration(model), 2)

    assert "alone" in both(monkeypatch, program)


def written_inputs(learner):
    """One buffer for the data of all tasks and steps, where PyTorch asks for copies."""
    given = (lambda x: x) if report.ON else torch.clone
    total, buffers = 0, [torch.empty_like(x) for x in task()]
    for _ in range(TASKS):
        clone = learner.clone()
        for _ in range(2):
            for buffer, x in zip(buffers, task(), strict=True):
                buffer.copy_(x)
            clone.adapt(F.cross_entropy(clone(given(buffers[0])), given(buffers[1])))
        total = total + F.cross_entropy(clone(given(buffers[2])), given(buffers[3]))
    for buffer in buffers:
        buffer.zero_()
    total.backward()
    return [total]


def written_parameters(learner):
    """A value that is read, and a gradient that is taken, after the parameters were changed."""
    kept, other = losses(learner), losses(learner)
    first, second = next(kept), next(other)
    with torch.no_grad():
        for p in learner.parameters():
            p.mul_(0.9)
    second.backward()
    return [first.item(), second.item()]


def data_of_parameters(learner):
    """Writes that no version counts, as old programs do after a way back."""
    found = alone(learner)
    for p in learner.parameters():
        p.data.sub_(0.1 * p.grad)
    return found + alone(learner)


def hooked(learner):
    """A hook that comes between two steps, on the layers that clones share their hooks with."""
    clone, seen = learner.clone(), []
    x, y, query_x, query_y = task()
    clone.adapt(F.cross_entropy(clone(x), y))
    handle = learner.module[0].register_forward_hook(lambda *found: seen.append(1) or 2 * found[2])
    clone.adapt(F.cross_entropy(clone(x), y))
    loss = F.cross_entropy(clone(query_x), query_y)
    handle.remove()
    loss.backward()
    return [loss, len(seen)]


def of_parameters(learner):
    """Parameters of a clone, asked for after steps, and gradients to them."""
    x, y, query_x, query_y = task()
    clone = adapted(learner.clone(), x, y, 2)
    loss = F.cross_entropy(clone(query_x), query_y)
    first, *_ = params = list(clone.parameters())
    grads = torch.autograd.grad(loss, params, retain_graph=True)
    (loss + first.square().sum()).backward()
    return [loss, sum(g.sum() for g in grads)]


def early_loss(learner):
    """Losses counted at every step, an outer loss of support outputs, steps on scaled losses."""
    total = 0
    for _ in range(TASKS):
        x, y, query_x, query_y = task()
        clone = learner.clone()
        for k in range(3):
            total = total + (k + 1) * F.cross_entropy(clone(query_x), query_y) / 6
            loss = F.cross_entropy(clone(x), y)
            total = total - 0.1 * (loss.detach() if learner.first_order else loss)  # whose graph is gone then
            clone.adapt(loss / 2)
            step = F.cross_entropy(clone(x), y)
            step /= 4
            clone.adapt(step)
    total.backward()
    return [total]


def interleaved(learner):
    one, two = learner.clone(), learner.clone()
    (x, y, query_x, query_y), (x2, y2, *_) = task(), task()
    loss, other = F.cross_entropy(one(x), y), F.cross_entropy(two(x2), y2)
    one.adapt(loss)
    two.adapt(other)
    one.adapt(other + F.cross_entropy(one(x2), y2))  # of both
    total = F.cross_entropy(one(query_x), query_y) + F.cross_entropy(two(query_x), query_y)
    total.backward()
    return [total, loss, other]


def of_many_kinds(learner):
    """Every other thing that programs do with losses and outputs."""
    x, y, query_x, query_y = task()
    clone = adapted(learner.clone(), x, y, 1)
    outputs = clone(query_x)
    loss = F.cross_entropy(outputs, query_y)
    total = loss
    total += F.cross_entropy(clone(x), y)  # loss too
    probabilities = outputs.softmax(1)
    detached = loss.detach()
    found = [
        loss,
        f"{loss:.6f}" > "",
        float(loss),
        loss > 0,
        loss.detach() + 1,
        len(outputs),
        outputs[0, 0],
        detached * 2,
    ]
    found += [
        torch.isfinite(loss),
        outputs.max(1)[1][0],
        torch.topk(outputs, 2).values[0, 1],
        outputs.view(-1)[1],
        *outputs.shape,
    ]
    assert (
        isinstance(loss, torch.Tensor) and repr(loss) and loss.dim() == 0 and loss.numel() == 1 and loss.requires_grad
    )
    assert (
        outputs.dtype == torch.float64 and outputs.size(1) == WAYS and outputs.device == x.device and not loss.is_leaf
    )
    loss.backward(retain_graph=True)
    (total + probabilities.square().sum() + torch.exp(loss)).backward()
    return found


def copies(learner):
    x, y, query_x, query_y = task()
    clone = adapted(learner.clone(), x, y, 1)
    outputs = clone(query_x).detach()
    again = pickle.loads(pickle.dumps(copy.deepcopy(learner))).clone()
    twice = adapted(adapted(again, x, y, 1).clone(), x, y, 1)
    assert type(clone.clone()).__name__ in ("MAML", "RecordedMAML") and "Linear" in repr(clone)
    loss = F.cross_entropy(clone(query_x), query_y) + F.cross_entropy(twice(query_x), query_y).detach()
    loss.backward()
    return [loss, outputs]


def without_grad(learner):
    """Evaluation under no_grad, alone and with what was recorded in grad mode."""
    x, y, query_x, query_y = task()
    clone = adapted(learner.clone(), x, y, 2)
    recorded = F.cross_entropy(clone(query_x), query_y)
    with torch.no_grad():
        loss = F.cross_entropy(clone(query_x), query_y)
        doubled = recorded * 2 + 1
        assert not loss.requires_grad
    recorded.backward()
    return [loss, doubled]


def twice_back(learner):
    """The second way back through a graph is an error."""
    first = next(losses(learner))
    total = first + next(losses(learner))
    total.backward()
    for again in (total, first, total * 2, first.exp()):
        with pytest.raises(RuntimeError, match="second time"):
            again.backward()
    return [total, first, total * 2]


def nothing_counts(learner):
    """Targets that are all ignored: the mean of nothing."""
    x, y, query_x, query_y = task()
    query_y[:3] = -100
    loss = F.cross_entropy(adapted(learner.clone(), x, y, 1)(query_x), query_y)
    loss.backward()
    nothing = F.cross_entropy(learner.clone()(query_x), torch.full_like(query_y, -100))
    return [loss, torch.isnan(nothing)]


def of_features(learner):
    """ANIL: features of a body that is not adapted."""
    total = 0.0
    body = learner.module.body if hasattr(learner.module, "body") else BODY
    for _ in range(TASKS):
        x, y, query_x, query_y = task()
        clone = adapted(learner.clone(), body(x), y, 2)
        total = total + F.cross_entropy(clone(body(query_x)), query_y)
    total.backward()
    found = [total, *(p.grad.clone() for p in body.parameters())]
    body.zero_grad()
    return found


torch.manual_seed(2)
BODY = nn.Linear(3, 3).double()
FAULTS = (
    written_inputs, written_parameters, data_of_parameters, hooked, of_parameters, early_loss, interleaved, of_many_kinds, copies,
    without_grad, twice_back, nothing_counts, of_features,
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("first_order", [False, True])
def test_faults(monkeypatch, fault, first_order):
    both(monkeypatch, lambda: trained(MAML(net(), 0.1, first_order=first_order), fault, 2))


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, WAYS)).double(),
        lambda: nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, WAYS)).double(),
        lambda: nn.Sequential(nn.Linear(3, 6), nn.SiLU(), nn.Linear(6, WAYS)).double(),
    ],
)
def test_models_that_are_not_recorded(monkeypatch, model):
    """They draw numbers or keep statistics: everything is computed when the program says so."""
    torch.manual_seed(0)
    kept = copy.deepcopy(model().state_dict())

    def program():
        learner = MAML(model(), 0.1)
        learner.module.load_state_dict(kept)
        found = trained(learner, summed)
        return found + [b.clone() for b in learner.buffers()]

    assert {*both(monkeypatch, program)} == {"plain"}


def test_wrong_labels_and_shapes_are_the_models_errors():
    learner = MAML(net(), 0.1)
    x, y, *_ = task()
    with pytest.raises(IndexError, match="out of bounds"):
        F.cross_entropy(learner.clone()(x), y + WAYS).backward()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        learner.clone()(x[:, :2])
    assert "Sequential" in str(explain())

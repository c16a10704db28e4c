"""Whatever comes between the calls of clones and a look at the running statistics of batch norm, these are the library's."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.integrations.learn2learn import nn as l2l_nn
from fastmeta.integrations.learn2learn.algorithms import MAML, MetaSGD
from fastmeta.integrations.recording import report
from harness.recorded import (
    TASKS,
    WAYS,
    Lines,
    adapted,
    alone,
    both,
    by_grad,
    conv,
    losses,
    stacked,
    summed,
    task,
    trained,
    weighted,
    with_accuracy,
)  # fmt: skip


def images(momentum=0.3, affine=True):
    model = conv()
    model[1] = nn.BatchNorm2d(4, momentum=momentum, affine=affine).double()
    more = [nn.Conv2d(4, 3, 3, padding=1, bias=False).double(), nn.BatchNorm2d(3).double(), nn.ReLU()]
    return nn.Sequential(*model[:4], *more, nn.Flatten(), nn.Linear(27, WAYS).double())


def state(learner):
    return [b.double().clone() for b in learner.buffers()]


def read_between(learner):
    """Some buffers in the middle of the recording, and no step after it."""
    x, y, query_x, query_y = task(images=True)
    clone = adapted(learner.clone(), x, y, 1)
    clone(query_x)
    found = state(learner)
    loss = F.cross_entropy(adapted(clone, x, y, 1)(query_x), query_y)
    found.append(learner.module[1].running_var.sum())
    loss.backward()
    return [*found, loss]


def two_clones(learner):
    """Whose calls alternate, with a third, of which nobody takes a value, between them."""
    one, two, three = learner.clone(), learner.clone(), learner.clone()
    (x, y, query_x, query_y), (x2, y2, *_) = task(images=True), task(images=True)
    first, second = F.cross_entropy(one(x), y), F.cross_entropy(two(x2), y2)
    three(query_x)
    two.adapt(second)
    one.adapt(first)
    late = F.cross_entropy(two(query_x), query_y)
    early = F.cross_entropy(one(query_x), query_y)
    early.backward()
    late.backward()
    return [early, late]


def other_modes(learner):
    """Eval mode afterwards, and back; an eval mode of a clone; calls without grad."""
    found = alone(learner, images=True)
    x, y, query_x, query_y = task(images=True)
    kept = learner.clone()
    waiting = F.cross_entropy(kept(x), y)
    learner.module.eval()
    with torch.no_grad():
        found.append(learner(query_x).sum())
    F.cross_entropy(adapted(learner.clone(), x, y, 2)(query_x), query_y).backward()
    waiting.backward()
    learner.module.train()
    found += [*alone(learner, images=True), waiting]
    clone = adapted(learner.clone(), x, y, 1)
    clone.eval()
    found.append(clone(query_x).sum())
    with torch.no_grad():
        found.append(adapted_without_grad(learner)(query_x).sum())
    return found


def frozen_norm(learner):
    found = alone(learner, images=True)
    learner.module[1].eval()
    found += alone(learner, images=True)
    learner.module[1].train()
    return found


def adapted_without_grad(learner):
    with torch.enable_grad():
        x, y, *_ = task(images=True)
        return adapted(learner.clone(), x, y, 2)


def copies(learner):
    """state_dict and copies while calls wait."""
    x, y, query_x, query_y = task(images=True)
    clone = adapted(learner.clone(), x, y, 2)
    loss = F.cross_entropy(clone(query_x), query_y)
    again = copy.deepcopy(learner)
    found = [b.double().sum() for b in learner.state_dict().values()]
    F.cross_entropy(adapted(again.clone(), query_x, query_y, 1)(x), y).backward()
    loss.backward()
    with torch.no_grad():
        found.append(learner.clone()(x).sum())
    return [*found, *state(again), loss]


def asked_clones(learner):
    """A clone that computes at once beside one that records, and one of a clone."""
    x, y, query_x, query_y = task(images=True)
    one, two = learner.clone(), learner.clone()
    loss = F.cross_entropy(two(x), y)
    one.adapt(F.cross_entropy(one(x), y))
    found = [p.sum() for p in one.parameters()]
    two.adapt(loss)
    one.adapt(F.cross_entropy(one(query_x), query_y))
    again = two.clone()
    value = F.cross_entropy(two(query_x), query_y) + F.cross_entropy(again(x), y) + F.cross_entropy(one(x), y)
    value.backward()
    return [*found, value]


def beside_a_plain_clone(learner):
    x, y, query_x, query_y = task(images=True)
    one = learner.clone()
    found = [p.sum() for p in one.parameters()]
    two = learner.clone()
    late = F.cross_entropy(two(x), y)
    value = F.cross_entropy(one(query_x), query_y)
    late.backward()
    return [*found, value, late]


def changed_norms(learner):
    """Another momentum, statistics that are written to, a norm that is exchanged, a hook: while calls wait."""
    kept = losses(learner, images=True)
    first = next(kept)
    norm = learner.module[1]
    norm.momentum = 0.05 if norm.momentum is None else None
    second = next(kept)
    norm.running_mean.data.fill_(2.0)  # which a graph has kept
    third = next(kept)
    learner.module[5] = copy.deepcopy(learner.module[5])
    found, seen = alone(learner, images=True), []
    waiting = next(losses(learner, images=True))
    handle = norm.register_forward_hook(lambda *_: seen.append(1))
    (first + second + third + waiting).backward()
    handle.remove()
    return [first, second, third, *found, waiting, len(seen)]


def many_forwards(learner):
    """The same inputs again and again, each of which counts; other data of later steps; inputs that are written to."""
    x, y, query_x, query_y = task(images=True)
    given = (lambda x: x) if report.ON else torch.clone
    clone = learner.clone()
    for _ in range(3):
        for _ in range(2):
            clone(given(x))
        clone.adapt(F.cross_entropy(clone(given(x)), y))
    clone.adapt(F.cross_entropy(clone(given(query_x)), query_y))
    loss = F.cross_entropy(clone(given(query_x)), query_y)
    query_x.zero_()
    loss.backward()
    return [loss]


def other_graphs(learner):
    """Ways back through the model itself and through a clone that computes at once, which have kept the buffers."""
    x, y, *_ = task(images=True)
    loss = F.cross_entropy(learner(x), y)
    clone = learner.clone()
    found = [p.sum() for p in clone.parameters()]
    other = F.cross_entropy(clone(x), y)
    del clone
    found += alone(learner, images=True)
    (loss + other).backward()
    return [*found, loss]


def wrong_labels(learner):
    """An error of a loss, after which the program goes on."""
    x, y, query_x, query_y = task(images=True)
    clone = learner.clone()
    with pytest.raises(IndexError):
        F.cross_entropy(adapted(clone, x, y + WAYS, 1)(query_x), query_y).backward()
    return alone(learner, images=True)


ORDINARY = (summed, stacked, by_grad, weighted, alone, with_accuracy)
FAULTS = (
    read_between, two_clones, frozen_norm, other_modes, copies, asked_clones, beside_a_plain_clone, changed_norms, many_forwards,
    other_graphs, wrong_labels,
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("momentum", [0.3, None])
def test_faults(monkeypatch, fault, momentum):
    def program():
        model = images(momentum, affine=momentum is not None)
        return trained(MAML(model, 0.1), lambda learner: [*fault(learner), *state(learner)], 2) + state(model)

    both(monkeypatch, program)


@pytest.mark.parametrize("way", ORDINARY, ids=lambda way: way.__name__)
def test_ordinary_programs_run_natively(monkeypatch, way):
    kind = MetaSGD if way is summed else MAML

    def program():
        model = images()
        return trained(kind(model, 0.1), lambda learner: way(learner, images=True)) + state(model)

    ways = both(monkeypatch, program)
    assert {*ways} == ({"replayed"} if way is weighted else {"alone"} if way in (alone, with_accuracy) else {"batched"})


def test_rows(monkeypatch):
    """BatchNorm1d in an MLP; no step at all."""

    def program():
        model = Lines(track_running_stats=True)
        return trained(MAML(model, 0.1), lambda learner: alone(learner, steps=0) + alone(learner)) + state(model)

    assert {*both(monkeypatch, program)} == {"alone"}


class OfLibrary(nn.Module):
    """As learn2learn's OmniglotCNN."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        layers = [nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(1, 5, 3, stride=2, padding=1)]
        block = nn.Sequential(layers[2], *layers[:2])
        block[1].weight.data.uniform_()
        self.base = nn.Sequential(block, nn.Conv2d(5, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.features = nn.Sequential(
            l2l_nn.Lambda(lambda x: x.view(-1, 1, 6, 6)), self.base, l2l_nn.Lambda(lambda x: x.mean(dim=[2, 3])), l2l_nn.Flatten(),
        )  # fmt: skip
        self.classifier = nn.Linear(4, WAYS)
        self.double()

    def forward(self, x):
        return self.classifier(self.features(x))


@pytest.mark.parametrize(("way", "expected"), [(with_accuracy, "alone"), (weighted, "replayed")])
def test_the_mean_over_pixels(monkeypatch, way, expected):
    """Of a model whose layers have two names."""

    def program():
        model = OfLibrary()
        return trained(MAML(model, 0.1), lambda learner: way(learner, images=True)) + state(model)

    assert {*both(monkeypatch, program)} == {expected}


def test_nothing_waits_after_a_way_back():
    """Who holds a buffer itself sees it change, and the model has its own dicts again."""
    model = images()
    held, dicts = model[1].running_mean, [type(m._buffers) for m in model]
    loss = next(losses(MAML(model, 0.1), steps=3, images=True))
    loss.backward()
    assert model[1].running_mean is held and held.any() and model[1].num_batches_tracked == 4
    assert [type(m._buffers) for m in model] == dicts


def test_a_write_past_the_module_is_an_error():
    model = images()
    held = model[1].running_mean
    loss = next(losses(MAML(model, 0.1), images=True))
    held.zero_()
    with pytest.raises(
        RuntimeError, match=r"^MAML: running statistics .* must be written by their module alone .* got "
    ):
        loss.backward()
    assert sum(alone(MAML(model, 0.1), images=True)) and TASKS

"""Recorded steps with momentum and decay, and of Adam: what higher and TorchOpt make of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.integrations import higher, torchopt
from harness.inner_optimisers import OPTIONS, all_digits, optimiser, tensors  # noqa: F401  (a fixture)
from harness.installed_peers import peer
from harness.recorded import TASKS, both, conv, net, task, trained


def batches(steps, kind):
    """Of the steps: the same for all, or one for each, or none the same."""
    first = task()
    return [task() if kind == "new" else first for _ in range(steps)], first[2:]


def of_higher(library, name, kind, model=None, way="summed", steps=(1, 2, 5), **options):
    """Tasks with other numbers of steps each."""
    model, total, found = model or net(), 0, []
    inner = optimiser(name, model.parameters())
    for k in steps:
        support, (query_x, query_y) = batches(k, kind)
        with library.innerloop_ctx(model, inner, **{"copy_initial_weights": False} | options) as (fmodel, diffopt):
            for x, y, *_ in support:
                diffopt.step(F.cross_entropy(fmodel(x), y))
            loss = F.cross_entropy(fmodel(query_x), query_y)
        if way == "state":
            states = [x for state in diffopt.state for i in sorted(state) for x in tensors(state[i])]
            tracked = options.get("track_higher_grads", True)
            assert library is not higher or all(x.requires_grad == tracked for x in states)
            found += [x.sum() for x in states]
        if way == "alone":
            loss.backward()
            found.append(loss.detach())
        total = total + loss
    if way != "alone":
        total.backward()
    return [total, *found]


def of_torchopt(library, name, kind, model=None, way="summed", steps=(1, 2, 5)):
    model, total, found = model or net(), 0, []
    inner = (library.MetaAdam if "Adam" in name else library.MetaSGD)(model, **OPTIONS[name])
    start = [library.extract_state_dict(part, by="reference") for part in (model, inner)]
    for k in steps:
        support, (query_x, query_y) = batches(k, kind)
        for x, y, *_ in support:
            inner.step(F.cross_entropy(model(x), y))
        loss = F.cross_entropy(model(query_x), query_y)
        if way == "alone":
            loss.backward()
            found.append(loss.detach())
        total = total + loss
        library.recover_state_dict(model, start[0])
        if way != "lasting":  # the state of one task is where the next begins
            library.recover_state_dict(inner, start[1])
    if way != "alone":
        total.backward()
    return [total, *found]


def agree(monkeypatch, program, swap, *args, **options):
    """Recorded, not recorded, and on the library; what explain() says of the former."""

    def on(library):
        return trained(net(), lambda model: program(library, *args, model=model, **options))

    ways = both(monkeypatch, lambda: on(swap))
    theirs = on(peer(swap.__name__.rpartition(".")[2]))
    monkeypatch.undo()
    torch.testing.assert_close(on(swap), theirs, rtol=1e-9, atol=1e-11)
    return ways


@pytest.mark.parametrize("kind", ["same", "new"])
@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_libraries(monkeypatch, name, kind):
    for program, swap in ((of_higher, higher), (of_torchopt, torchopt)):
        way = "alone" if kind == "same" else "summed"
        ways = agree(monkeypatch, program, swap, name, kind, way=way)
        assert {*ways} == {"alone"}, ways
        ways = agree(monkeypatch, program, swap, name, kind, steps=(3,) * TASKS)
        assert {*ways} == {"batched"}, ways


def norms_in_higher(library, name, model):
    inner, found = optimiser(name, model.parameters()), []
    for _ in range(TASKS):
        x, y, query_x, query_y = task(images=True)
        with library.innerloop_ctx(model, inner, copy_initial_weights=False) as (fmodel, diffopt):
            for _ in range(2):
                diffopt.step(F.cross_entropy(fmodel(x), y))
            loss = F.cross_entropy(fmodel(query_x), query_y)
            loss.backward()
        found += [loss, *fmodel.buffers()]
    return found


def norms_in_torchopt(library, name, model):
    inner = (library.MetaAdam if "Adam" in name else library.MetaSGD)(model, **OPTIONS[name])
    start, found = [library.extract_state_dict(part, by="reference") for part in (model, inner)], []
    for _ in range(TASKS):
        x, y, query_x, query_y = task(images=True)
        for _ in range(2):
            inner.step(F.cross_entropy(model(x), y))
        loss = F.cross_entropy(model(query_x), query_y)
        loss.backward()
        for part, state in zip((model, inner), start, strict=True):
            library.recover_state_dict(part, state)
        found += [loss, *(b.clone() for b in model.buffers())]
    return found


@pytest.mark.parametrize("name", ["nesterov", "Adam"])
@pytest.mark.parametrize(("program", "swap"), [(norms_in_higher, higher), (norms_in_torchopt, torchopt)])
def test_running_statistics(monkeypatch, program, swap, name):
    """The buffers after each task, and the gradients through its steps."""

    def on(library):
        model = conv()
        model[0], model[1] = (
            nn.Conv2d(1, 4, 3, padding=1, bias=False).double(),
            nn.BatchNorm2d(4, momentum=0.3).double(),
        )
        return trained(nn.ParameterList(model.parameters()), lambda _: program(library, name, model), 2)

    ways = both(monkeypatch, lambda: on(swap))
    # The buffers of higher's copy are read while it could still step.
    assert {*ways} == ({"alone", "plain"} if swap is higher else {"alone"}), ways
    theirs = on(peer(swap.__name__.rpartition(".")[2]))
    monkeypatch.undo()
    torch.testing.assert_close(on(swap), theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["nesterov", "Adam with decay"])
def test_states(monkeypatch, name):
    """What is read of a state is that of the library; one that lasts is not recorded."""
    options = {"copy_initial_weights": False}
    assert {*agree(monkeypatch, of_higher, higher, name, "new", way="state")} == {"plain"}
    agree(monkeypatch, of_higher, higher, name, "same", way="state", track_higher_grads=False, **options)
    agree(monkeypatch, of_torchopt, torchopt, name, "same", way="lasting")


@pytest.mark.parametrize("name", ["nesterov", "Adam"])
def test_learned_rates_and_own_weights(monkeypatch, name):
    """Rates of groups, copies as a start, a network with convolutions."""

    def program(copies, model, images=False):
        rates = [nn.Parameter(torch.tensor(0.1 + 0.01 * i)) for i, _ in enumerate(model.parameters())]
        inner, found = optimiser(name, [{"params": [p]} for p in model.parameters()]), []
        for _ in range(TASKS):
            x, y, query_x, query_y = task(images)
            options = {"copy_initial_weights": copies, "override": {"lr": rates}}
            with higher.innerloop_ctx(model, inner, **options) as (fmodel, diffopt):
                for _ in range(2):
                    diffopt.step(F.cross_entropy(fmodel(x), y))
                loss = F.cross_entropy(fmodel(query_x), query_y)
                loss.backward()
                found.append(loss)
        seen = [b.double().sum() for b in fmodel.buffers()] if images else []
        return [*found, *seen, *(r.grad for r in rates)]

    for copies in (False, True):
        ways = both(monkeypatch, lambda copies=copies: trained(net(), lambda model: program(copies, model)))
        assert {*ways} == {"alone"}, ways
        monkeypatch.undo()
    for norm in ({"track_running_stats": False}, {"momentum": 0.3}):

        def with_norm(norm=norm):
            model = conv()
            model[1] = nn.BatchNorm2d(4, **norm).double()
            return trained(model, lambda model: program(False, model, True), 1)

        ways = both(monkeypatch, with_norm)
        assert {*ways} == {"alone", "plain"}, ways  # the buffers of the last copy are read
        monkeypatch.undo()

"""Recorded steps with momentum and decay, and of Adam: what higher and TorchOpt make of them, and what falls out of recording."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmeta.integrations import higher, torchopt
from harness.installed_peers import peer
from harness.recorded import TASKS, both, conv, net, task, trained

OPTIONS = {
    "momentum": {"lr": 0.1, "momentum": 0.9},
    "decay": {"lr": 0.1, "weight_decay": 0.2},
    "nesterov": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2, "nesterov": True},
    "Adam": {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-2},
    "Adam with decay": {"lr": 0.05, "betas": (0.6, 0.8), "eps": 1e-3, "weight_decay": 0.2},
}


@pytest.fixture(autouse=True)
def all_digits():
    """TorchOpt raises betas to powers in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def optimiser(name, params, **more):
    kind = torch.optim.Adam if "Adam" in name else torch.optim.SGD
    return kind(params, **OPTIONS[name] | more)


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


def tensors(state):
    return [x for x in state.values() if isinstance(x, torch.Tensor) and x.ndim]


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


def at_odds(inner, model, diffopt, fmodel, rate):
    """What happens between the steps of a program, by name."""
    return {
        "rate of the optimiser": lambda: inner.param_groups[0].update(lr=7.0, momentum=0.5),
        "rate": lambda: diffopt.param_groups[0].update(lr=0.3),
        "learned rate": lambda: torch.no_grad()(rate.mul_)(3),
        "state of the optimiser": lambda: sum(p.sum() for p in model.parameters()).backward() or inner.step(),
        "parameters": lambda: [p.sum().item() for p in fmodel.parameters()],
    }


FAULTS = ["rate of the optimiser", "rate", "learned rate", "state of the optimiser", "parameters"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["nesterov", "Adam with decay"])
def test_between_steps(monkeypatch, name, fault):
    def program(model):
        inner, rate = optimiser(name, model.parameters()), torch.tensor(0.05)
        (x, y, query_x, query_y), found = task(), []
        options = {"copy_initial_weights": True, "override": {"lr": [rate]} if fault == "learned rate" else None}
        with higher.innerloop_ctx(model, inner, **options) as (fmodel, diffopt):
            diffopt.step(F.cross_entropy(fmodel(x), y))
            diffopt.step(F.cross_entropy(fmodel(x), y))
            at_odds(inner, model, diffopt, fmodel, rate)[fault]()
            diffopt.step(F.cross_entropy(fmodel(x), y))
            diffopt.step(F.cross_entropy(fmodel(query_x), query_y) / 2)
            found.append(F.cross_entropy(fmodel(query_x), query_y).item())
            found += [x.sum() for i in range(4) for x in tensors(diffopt.state[0][i])]
        return found

    both(monkeypatch, lambda: trained(net(), program))


def two_optimisers(model, x, y):
    """In turn, on all of a model and on a part of it."""
    first, second = torchopt.MetaSGD(model, lr=0.1, momentum=0.9), torchopt.MetaAdam(model[2], lr=0.1, eps=1e-2)
    for inner in (first, second, first, second, first):
        inner.step(F.cross_entropy(model(x), y))
    return [first.state_groups, second.state_groups]


def two_groups(model, x, y):
    inner = torchopt.MetaSGD(model[0], lr=0.1, momentum=0.9)
    inner.add_param_group(model[2])
    for _ in range(3):
        inner.step(F.cross_entropy(model(x), y))
    return [inner.state_groups]


def state_put_back(model, x, y):
    """In the middle of the steps: one that is read, and an empty one."""
    inner = torchopt.MetaAdam(model, lr=0.1, eps=1e-2)
    empty = torchopt.extract_state_dict(inner)
    for k in range(6):
        inner.step(F.cross_entropy(model(x), y))
        if k == 1:
            kept = torchopt.extract_state_dict(inner, by="copy")
        if k == 3:
            torchopt.recover_state_dict(inner, kept)
        if k == 4:
            torchopt.recover_state_dict(inner, empty)
    return [inner.state_groups]


def multiples(model, x, y):
    """Steps on a multiple of a loss."""
    inner = torchopt.MetaSGD(model, lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        inner.step(F.cross_entropy(model(x), y) * 2)
    return []


def kinds_of_losses(model, x, y):
    inner = torchopt.MetaSGD(model, lr=0.1, momentum=0.9, weight_decay=0.1)
    inner.step(F.cross_entropy(model(x), y))
    inner.step(F.mse_loss(model(x), torch.ones(8, 4)))
    return []


@pytest.mark.parametrize("fault", [two_optimisers, two_groups, state_put_back, multiples, kinds_of_losses])
def test_torchopt_optimisers_at_odds(monkeypatch, fault):
    def program(model):
        (x, y, query_x, query_y), start = task(), torchopt.extract_state_dict(model)
        states = fault(model, x, y)
        loss = F.cross_entropy(model(query_x), query_y)
        found = [t for of_all in states for groups in of_all for i in sorted(groups) for t in tensors(groups[i])]
        torchopt.recover_state_dict(model, start)
        sum((t.sum() for t in found), loss).backward()
        return [loss, *(t.sum() for t in found)]

    both(monkeypatch, lambda: trained(net(), program))


def test_optimisers_in_turn(monkeypatch):
    """Of one rate on one model: each task has its own."""

    def program(model):
        total, (x, y, query_x, query_y) = 0, task()
        for options in ({"momentum": 0.9}, {}, {"momentum": 0.5}, {"weight_decay": 0.5}):
            inner = torch.optim.SGD(model.parameters(), lr=0.1, **options)
            with higher.innerloop_ctx(model, inner, copy_initial_weights=False) as (fmodel, diffopt):
                for _ in range(2):
                    diffopt.step(F.cross_entropy(fmodel(x), y))
                total = 2 * total + F.cross_entropy(fmodel(query_x), query_y)
        total.backward()
        return [total]

    both(monkeypatch, lambda: trained(net(), program))


def test_what_the_ops_lack_computes_at_once(monkeypatch):
    """Learned momentum and betas, dampening, amsgrad, groups with other options, a part of the parameters."""
    learned = torch.tensor(0.5, requires_grad=True)

    def program(model, kind, groups, options, override=None):
        inner = kind(groups(model), **options)
        x, y, query_x, query_y = task()
        with higher.innerloop_ctx(model, inner, override=override, copy_initial_weights=False) as (fmodel, diffopt):
            for _ in range(3):
                diffopt.step(F.cross_entropy(fmodel(x), y))
            loss = F.cross_entropy(fmodel(query_x), query_y)
            loss.backward()
        return [loss]

    def whole(model):
        return model.parameters()

    def parts(model):
        return [{"params": model[0].parameters()}, {"params": model[2].parameters(), "weight_decay": 0.5}]

    sgd, adam = torch.optim.SGD, torch.optim.Adam
    for case in (
        (sgd, whole, {"lr": 0.1, "momentum": 0.9}, {"momentum": [learned]}),
        (adam, whole, {"lr": 0.1}, {"betas": [(learned, 0.9)]}),
        (sgd, whole, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
        (adam, whole, {"lr": 0.1, "eps": 1e-2, "amsgrad": True}),
        (sgd, parts, {"lr": 0.1, "momentum": 0.9}),
        (adam, parts, {"lr": 0.1, "eps": 1e-2}),
        (sgd, lambda model: model[0].parameters(), {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.AdamW, whole, {"lr": 0.1, "eps": 1e-2}),
    ):
        ways = both(monkeypatch, lambda case=case: trained(net(), lambda model: program(model, *case), 2))
        assert not ways, case
        monkeypatch.undo()

"""Steps of higher and TorchOpt that fall out of recording, and those that are not recorded: results are the libraries'."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from fastmeta.integrations import higher, torchopt
from harness.inner_optimisers import OPTIONS, all_digits, optimiser, tensors  # noqa: F401  (a fixture)
from harness.installed_peers import peer
from harness.recorded import both, net, task, trained


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


def by_monkeypatch(library, model):
    """higher without its context, on Adam."""
    x, y, query_x, query_y = task()
    fmodel = library.monkeypatch(model, copy_initial_weights=False)
    inner = optimiser("Adam with decay", model.parameters())
    diffopt = library.get_diff_optim(inner, model.parameters(), fmodel=fmodel, track_higher_grads=True)
    for _ in range(3):
        diffopt.step(F.cross_entropy(fmodel(x), y))
    return F.cross_entropy(fmodel(query_x), query_y)


def by_updates(kind, options, library, model):
    """TorchOpt's functional optimisers."""
    x, y, query_x, query_y = task()
    names, params = zip(*model.named_parameters(), strict=True)
    inner = getattr(library, kind)(**options)
    state = inner.init(params)
    for _ in range(3):
        loss = F.cross_entropy(functional_call(model, dict(zip(names, params, strict=True)), (x,)), y)
        grads = torch.autograd.grad(loss, params, create_graph=True)
        updates, state = inner.update(grads, state, params=params, inplace=False)
        params = library.apply_updates(params, updates, inplace=False)
    return F.cross_entropy(functional_call(model, dict(zip(names, params, strict=True)), (query_x,)), query_y)


def by_adamw(library, model):
    """An optimiser that is TorchOpt's own."""
    x, y, query_x, query_y = task()
    inner = library.MetaAdamW(model, lr=0.1, eps=1e-2, weight_decay=0.3)
    start = library.extract_state_dict(model)
    for _ in range(3):
        inner.step(F.cross_entropy(model(x), y))
    loss = F.cross_entropy(model(query_x), query_y)
    library.recover_state_dict(model, start)
    return loss


NOT_RECORDED = {
    "monkeypatch": (higher, by_monkeypatch),
    "sgd": (torchopt, partial(by_updates, "sgd", {"lr": 0.1, "momentum": 0.9})),
    "adam": (torchopt, partial(by_updates, "adam", {"lr": 0.1, "eps": 1e-2})),
    "MetaAdamW": (torchopt, by_adamw),
}


def with_way_back(program, library):
    def iteration(model):
        loss = program(library, model)
        loss.backward()
        return [loss]

    return trained(net(), iteration)


@pytest.mark.parametrize("name", NOT_RECORDED)
def test_what_is_not_recorded_is_the_librarys(name):
    swap, program = NOT_RECORDED[name]
    theirs = with_way_back(program, peer(swap.__name__.rpartition(".")[2]))
    torch.testing.assert_close(with_way_back(program, swap), theirs, rtol=1e-9, atol=1e-11)


def test_adamw_in_higher():
    """higher lacks its step. By hand, with eps where higher's Adam has it."""
    lr, (b1, b2), eps, decay = 0.1, (0.8, 0.9), 1e-2, 0.3

    def by_hand(_, model):
        x, y, query_x, query_y = task()
        names, params = zip(*model.named_parameters(), strict=True)
        m = v = [torch.zeros_like(p) for p in params]
        for k in range(1, 4):
            loss = F.cross_entropy(functional_call(model, dict(zip(names, params, strict=True)), (x,)), y)
            grads = torch.autograd.grad(loss, params, create_graph=True)
            m = [b1 * of + (1 - b1) * g for of, g in zip(m, grads, strict=True)]
            v = [b2 * of + (1 - b2) * g * g for of, g in zip(v, grads, strict=True)]
            step = [a / (b.sqrt() + eps) for a, b in zip(m, v, strict=True)]
            rate = lr * (1 - b2**k) ** 0.5 / (1 - b1**k)
            params = [p * (1 - lr * decay) - rate * d for p, d in zip(params, step, strict=True)]
        return F.cross_entropy(functional_call(model, dict(zip(names, params, strict=True)), (query_x,)), query_y)

    def in_higher(library, model):
        x, y, query_x, query_y = task()
        inner = torch.optim.AdamW(model.parameters(), lr=lr, betas=(b1, b2), eps=eps, weight_decay=decay)
        with library.innerloop_ctx(model, inner, copy_initial_weights=False) as (fmodel, diffopt):
            for _ in range(3):
                diffopt.step(F.cross_entropy(fmodel(x), y))
            return F.cross_entropy(fmodel(query_x), query_y)

    expected = with_way_back(by_hand, None)
    torch.testing.assert_close(with_way_back(in_higher, higher), expected, rtol=1e-9, atol=1e-11)

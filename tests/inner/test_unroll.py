"""unroll against the same loop on autograd's graph, in float64: values and gradients to all inputs."""

import pytest
import torch
import torch.nn.functional as F
from plain import adam, sgd
from torch import nn
from torch.func import functional_call

import fastmeta
from harness.plain_loops import check_slope
from harness.plain_unroll import D, plain_unroll

K, N = 5, 6


def draw(*shape, positive=False):
    x = torch.rand(shape, dtype=D) if positive else torch.randn(shape, dtype=D)
    return x.requires_grad_()


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def of_options():
    """name -> (unroll's optimiser, the formula, its options, what is learned)."""
    rate, steps = draw(positive=True), draw(K, positive=True)
    momentum, decay, beta1, beta2 = (draw(positive=True) for _ in range(4))
    shapes = {name: p.shape for name, p in mlp().named_parameters()}
    each = {name: draw(*shape, positive=True) for name, shape in shapes.items()}
    of_tensors = {name: draw(positive=True) for name in shapes}
    elements = {name: draw(K, *shape, positive=True) for name, shape in shapes.items()}
    decays = {name: 0.1 * i for i, name in enumerate(shapes)}
    at = {name: lambda k, x=x: x[k] for name, x in elements.items()}
    S, A = fastmeta.SGD, fastmeta.Adam
    betas = (beta1, beta2)
    return {
        "sgd": (S(0.3), sgd, {"lr": 0.3}, []),
        "one rate": (S(rate), sgd, {"lr": rate}, [rate]),
        "rates of steps": (S(steps), sgd, {"lr": lambda k: steps[k]}, [steps]),
        "rates of tensors": (S(of_tensors), sgd, {"lr": of_tensors}, [*of_tensors.values()]),
        "rates of elements": (S(each), sgd, {"lr": each}, [*each.values()]),
        "rates of elements and steps": (S(elements), sgd, {"lr": at}, [*elements.values()]),
        "decays of tensors": (S(0.2, weight_decay=decays), sgd, {"lr": 0.2, "weight_decay": decays}, []),
        "momentum": (
            S(rate, momentum, decay), sgd, {"lr": rate, "momentum": momentum, "weight_decay": decay},
            [rate, momentum, decay],
        ),
        "nesterov": (
            S(each, momentum, nesterov=True), sgd, {"lr": each, "momentum": momentum, "nesterov": True},
            [*each.values(), momentum],
        ),
        "adam": (A(0.1), adam, {"lr": 0.1}, []),
        "adam, all learned": (
            A(elements, betas, 1e-3, decay), adam, {"lr": at, "betas": betas, "eps": 1e-3, "weight_decay": decay},
            [*elements.values(), beta1, beta2, decay],
        ),
    }  # fmt: skip


OPTIONS = list(of_options())


def same(ours, plain, inputs, retain_graph=False):
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-11)
    options = {"allow_unused": True, "materialize_grads": True, "retain_graph": retain_graph}
    found = [torch.autograd.grad(value, inputs, **options) for value in (ours, plain)]
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


def loss_of(net):
    return lambda p, x, y: F.cross_entropy(functional_call(net, p, (x,)), y)


@pytest.fixture
def problem():
    torch.manual_seed(0)
    net = mlp().to(D)
    batches = [(draw(N, 4), torch.randint(0, 3, (N,))) for _ in range(K)]
    query = draw(N, 4), torch.randint(0, 3, (N,))
    return net, dict(net.named_parameters()), loss_of(net), batches, query


@pytest.mark.parametrize("keep", ["all", "sqrt"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(problem, name, keep):
    """To initial parameters and state, what is learned of the optimiser, every batch and what outer closes over."""
    net, params, loss, batches, query = problem
    optimiser, formula, options, learned = of_options()[name]
    states = {name: [draw(*p.shape), draw(*p.shape, positive=True)] for name, p in params.items()}
    state = {"step": 3} | {of: {name: x[i] for name, x in states.items()} for i, of in enumerate(optimiser.names)}
    used = [x for of in optimiser.names for x in state[of].values()]
    if not optimiser.names:
        states = {name: [torch.zeros_like(p)] for name, p in params.items()}
    points, plain_states = plain_unroll(loss, params, batches, formula, dict(states), before=3, **options)
    found, after = fastmeta.unroll(loss, net, batches, optimiser=optimiser, state=state, keep=keep)
    assert after.keys() == state.keys() and after["step"] == 3 + K

    def all_of(params, column):
        return loss(params, *query) + sum(x.sin().sum() for i in range(len(optimiser.names)) for x in column(i))

    ours = all_of(found, lambda i: after[optimiser.names[i]].values())
    plain = all_of(points[-1], lambda i: [x[i] for x in plain_states.values()])
    same(ours, plain, [*params.values(), *used, *learned, *(x for x, _ in batches), query[0]])


@pytest.mark.parametrize("optimiser", [fastmeta.SGD, fastmeta.Adam])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}])
def test_the_values_are_torchs(problem, optimiser, options):
    net, params, loss, batches, _ = problem
    options = options | ({"momentum": 0.8, "nesterov": True} if optimiser is fastmeta.SGD else {"betas": (0.7, 0.9)})
    with torch.no_grad():
        found, _ = fastmeta.unroll(loss, net, batches, optimiser=optimiser(0.1, **options))
    theirs = getattr(torch.optim, optimiser.__name__)(net.parameters(), lr=0.1, **options)
    for batch in batches:
        theirs.zero_grad()
        loss(params, *batch).backward()
        theirs.step()
    torch.testing.assert_close(found, dict(net.named_parameters()), rtol=1e-12, atol=0)


@pytest.mark.parametrize("keep", ["all", "sqrt"])
def test_losses_after_some_steps(problem, keep):
    net, params, loss, batches, query = problem
    outer = [None, lambda p: loss(p, *query), None, lambda p: 2 * loss(p, *query), None]
    found, _ = fastmeta.unroll(loss, net, batches, optimiser=fastmeta.SGD(0.3, 0.9), outer=outer, keep=keep)
    points, _ = plain_unroll(loss, params, batches, sgd, lr=0.3, momentum=0.9)
    plain = torch.stack(
        [torch.zeros((), dtype=D) if f is None else f(p) for f, p in zip(outer, points[1:], strict=True)]
    )
    weights = torch.randn(K, dtype=D)
    torch.testing.assert_close(found, plain)
    same((weights * found).sum(), (weights * plain).sum(), [*params.values(), query[0], *(x for x, _ in batches)])


def test_batches_in_every_form(problem):
    net, params, loss, batches, query = problem
    stacked = torch.stack([x for x, _ in batches]).detach().requires_grad_(), torch.stack([y for _, y in batches])
    options = {"optimiser": fastmeta.SGD(0.3), "outer": lambda p: loss(p, *query)}
    truth = fastmeta.unroll(loss, net, batches, **options)[0]
    of_list = torch.autograd.grad(truth, [*params.values(), *(x for x, _ in batches)])
    n = len(params)
    for given, steps in ((stacked, None), (lambda k: (stacked[0][k], stacked[1][k]), K)):
        value, _ = fastmeta.unroll(loss, net, given, steps=steps, **options)
        *of_params, of_data = torch.autograd.grad(value, [*params.values(), stacked[0]])
        torch.testing.assert_close(value, truth)
        torch.testing.assert_close([*of_params, *of_data], list(of_list))
    one, _ = fastmeta.unroll(loss, net, batches[0], steps=K, **options)
    many, _ = fastmeta.unroll((net, "cross_entropy"), net.parameters(), [batches[0]] * K, **options | {
        "outer": lambda p: loss(dict(zip(params, p, strict=True)), *query)})  # fmt: skip
    same(one, many, [*params.values(), batches[0][0]])
    assert len(of_list) == n + K


@pytest.mark.parametrize("optimiser", [fastmeta.SGD(0.3, 0.5), fastmeta.Adam(0.1, eps=1e-2)])
@pytest.mark.parametrize("tasks", [True, 4])
def test_tasks(problem, optimiser, tasks):
    """Each task's gradient is the one that it has alone; one without examples has none."""
    net, params, loss, _, _ = problem
    x, y = draw(K, 4, N, 4), torch.randint(0, 3, (K, 4, N))
    data, targets = draw(4, N, 4), torch.randint(0, 3, (4, N))
    start = params if tasks == 4 else {name: p.expand(4, *p.shape) for name, p in params.items()}

    def of_tasks(p, *batch):
        return torch.vmap(loss)(p, *batch)

    found, _ = fastmeta.unroll(
        of_tasks, start, (x, y), optimiser=optimiser, tasks=tasks, outer=lambda p: of_tasks(p, data, targets)
    )
    alone = [
        fastmeta.unroll(
            loss, net, (x[:, t], y[:, t]), optimiser=optimiser, outer=lambda p, t=t: loss(p, data[t], targets[t])
        )[0]
        for t in range(4)
    ]
    weights = torch.randn(4, dtype=D)
    same((weights * found).sum(), (weights * torch.stack(alone)).sum(), [*params.values(), x, data])
    value, _ = fastmeta.unroll((net, "cross_entropy"), start, (x, y), optimiser=optimiser, tasks=tasks)
    assert value["0.bias"].shape == (4, 5)


def test_first_order(problem):
    net, params, loss, batches, query = problem
    rate = draw(K, positive=True)
    outer = lambda p: loss(p, *query)  # noqa: E731
    for optimiser, formula, options in (
        (fastmeta.SGD(rate, 0.5, 0.1), sgd, {"lr": lambda k: rate[k], "momentum": 0.5, "weight_decay": 0.1}),
        (fastmeta.Adam(rate), adam, {"lr": lambda k: rate[k]}),
    ):
        found, _ = fastmeta.unroll(loss, net, batches, optimiser=optimiser, outer=outer, first_order=True)
        points, _ = plain_unroll(loss, params, batches, formula, first_order=True, **options)
        same(found, outer(points[-1]), [*params.values(), rate, query[0], batches[0][0]])


def test_adam_at_zero_gradient():
    """A parameter that the loss does not reach, and one whose gradient is 0: the update's derivative is lr / eps, never NaN."""
    p = {"used": torch.ones(3, dtype=D, requires_grad=True), "unused": torch.ones(2, dtype=D, requires_grad=True)}
    shift = torch.zeros(3, dtype=D, requires_grad=True)
    found, state = fastmeta.unroll(
        lambda p: ((p["used"] - 1) ** 2).sum() / 2 + (p["used"] * shift).sum(), p, (), steps=1,
        optimiser=fastmeta.Adam(0.1, (0.9, 0.99), eps=1e-3),
    )  # fmt: skip
    grads = torch.autograd.grad(found["used"].sum() + found["unused"].sum() + state["exp_avg_sq"]["used"].sum(),
                                [shift, *p.values()])  # fmt: skip
    torch.testing.assert_close(grads[0], torch.full((3,), -0.1 / 1e-3, dtype=D))
    torch.testing.assert_close(grads[1], torch.full((3,), 1 - 0.1 / 1e-3, dtype=D))
    assert grads[2].tolist() == [1, 1]


@pytest.mark.parametrize("name", ["momentum", "adam, all learned"])
def test_finite_differences(problem, name):
    net, params, loss, batches, query = problem
    optimiser, _, _, learned = of_options()[name]
    inputs = [*params.values(), *learned, batches[1][0]]

    def value():
        return fastmeta.unroll(loss, net, batches, optimiser=optimiser, outer=lambda p: loss(p, *query))[0]

    check_slope(value, inputs)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam, all learned"])
def test_second_derivatives(problem, name):
    """create_graph, and torch.func, which unroll on a graph."""
    _, params, loss, batches, query = problem
    optimiser, formula, options, learned = of_options()[name]
    inputs = [*params.values(), *learned, query[0], batches[0][0]]

    def squares(value):
        return sum(g.square().sum() for g in torch.autograd.grad(value, inputs[:-1], create_graph=True))

    def outer(p):
        return loss(p, *query)

    def ours(p):
        return fastmeta.unroll(loss, p, batches, optimiser=optimiser, outer=outer)[0]

    points, _ = plain_unroll(loss, params, batches, formula, **options)
    same(squares(ours(params)), squares(outer(points[-1])), inputs)
    truth = torch.autograd.grad(ours(params), list(params.values()))
    torch.testing.assert_close(tuple(torch.func.grad(ours)(params).values()), truth)

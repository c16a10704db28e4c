"""unroll's gradients to what a loss closes over, models of several kinds, and what it refuses."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from plain import adam, sgd
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import fastmeta
from fastmeta.networks.batch_norm import ExactNorms
from harness.plain_unroll import D, plain_unroll

K, N = 5, 6
pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore:unroll. attention")]


def draw(*shape):
    return torch.randn(shape, dtype=D).requires_grad_()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixed, self.out = nn.Linear(4, 24, bias=False), nn.Linear(8, 3)

    def forward(self, x):
        query, keys, values = self.mixed(x.unflatten(1, (2, 2)).repeat(1, 1, 2)).chunk(3, -1)
        return self.out(
            F.scaled_dot_product_attention(*(z[:, None] for z in (query, keys, values))).flatten(2).mean(1)[:, :8]
        )


def models():
    torch.manual_seed(0)
    group = nn.Sequential(nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3))
    batch = nn.Sequential(
        nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5, track_running_stats=False), nn.GELU(), nn.Linear(5, 3)
    )
    return {
        "mlp": nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        "conv": nn.Sequential(nn.Unflatten(1, (1, 2, 2)), group),
        "batch norm": batch,
        "attention": Attention(),
    }


def compare(loss, net, batches, inputs, outer, optimiser=None, formula=sgd, keep="all", **options):
    """First and second derivatives, ours and those of the plain loop."""
    params = dict(net.named_parameters())
    optimiser, options = optimiser or fastmeta.SGD(0.3), options or {"lr": 0.3}
    inputs = [*params.values(), *inputs]
    noise = torch.get_rng_state()
    ours, _ = fastmeta.unroll(loss, net, batches, optimiser=optimiser, outer=outer, keep=keep)
    after = torch.get_rng_state()
    torch.set_rng_state(noise)
    with ExactNorms(), sdpa_kernel(SDPBackend.MATH):  # which torch differentiates rightly as often as it takes
        points, _ = plain_unroll(loss, params, batches, formula, **options)
        plain = outer(points[-1])
    assert torch.equal(torch.get_rng_state(), after)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-11)
    options = {"allow_unused": True, "materialize_grads": True}
    found = [torch.autograd.grad(value, inputs, retain_graph=True, **options) for value in (ours, plain)]
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)
    assert torch.equal(torch.get_rng_state(), after)
    found = [torch.autograd.grad(value, inputs, create_graph=True, **options) for value in (ours, plain)]
    totals = [sum(g.square().sum() for g in grads) for grads in found]
    found = [torch.autograd.grad(total, inputs, retain_graph=True, **options) for total in totals]
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


@pytest.fixture
def data():
    torch.manual_seed(1)
    batches = [(draw(N, 4), torch.randint(0, 3, (N,))) for _ in range(K)]
    return batches, (draw(N, 4), torch.randint(0, 3, (N,)))


def loss_of(net):
    return lambda p, x, y: F.cross_entropy(functional_call(net, p, (x,)), y)


@pytest.mark.parametrize("kind", models())
@pytest.mark.parametrize("which", ["sgd", "adam"])
def test_models(data, kind, which):
    net, (batches, query) = models()[kind].to(D), data
    loss = loss_of(net)
    how = (
        {"optimiser": fastmeta.Adam(0.1, eps=1e-2), "formula": adam, "lr": 0.1, "eps": 1e-2} if which == "adam" else {}
    )
    compare(loss, net, batches, [query[0], batches[0][0]], lambda p: loss(p, *query), **how)


def test_fused_attention_is_told(data):
    net, (batches, _) = Attention(), data
    batches = [(x.detach().float(), y) for x, y in batches]
    with pytest.warns(UserWarning, match="unroll: attention runs in its math form") as told:
        fastmeta.unroll(loss_of(net), net, batches, optimiser=fastmeta.SGD(0.1))
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # differentiated once
        fastmeta.unroll(
            (net.out, "cross_entropy"), net.out, (torch.randn(N, 8), batches[0][1]), steps=2, optimiser=fastmeta.SGD(0.1),
            outer=lambda p: net(batches[0][0]).sum(),
        )  # fmt: skip


@pytest.mark.parametrize("keep", ["all", "sqrt"])
def test_dropout_draws_the_same_again(data, keep):
    net, (batches, query) = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)).to(D), data
    loss = loss_of(net)
    compare(loss, net, batches, [], lambda p: loss(p, *query), keep=keep)


def closures():
    """name -> (what the loss has beside the plain one, the tensors that it closes over)."""
    leaf, other = draw(N), draw(4)
    module = nn.Linear(4, 4).to(D)
    result = (2 * leaf).softmax(0)
    first, second = torch.stack([leaf, leaf.sin()]).unbind()
    hooked = leaf.sigmoid()
    hooked.register_hook(lambda g: 3 * g)
    kept = leaf.cos()
    kept.retain_grad()
    both = other.sin()
    return {
        "leaf": (lambda p, x, each: (leaf * each).sum(), [leaf]),
        "module": (lambda p, x, each: (module(x).square().mean(1) * each).sum(), [*module.parameters()]),
        "result": (lambda p, x, each: (result * each).sum(), [leaf, result]),
        "outputs of one node": (lambda p, x, each: (first * each * second).sum(), [leaf, first, second]),
        "one from another": (lambda p, x, each: (result * leaf * each).sum(), [leaf, result]),
        "one from another twice": (lambda p, x, each: (result * result.exp() * leaf * each).sum(), [leaf, result]),
        "with a hook": (lambda p, x, each: (hooked * each).sum(), [leaf, hooked]),
        "that keeps its gradient": (lambda p, x, each: (kept * each).sum(), [leaf, kept]),
        "start": (lambda p, x, each: sum((a - p[n]).square().sum() for n, a in START[0].items()), []),
        "input": (lambda p, x, each: (x * both).sum() * each.sum(), [other, both]),
    }  # fmt: skip


START = [{}]  # the initial parameters, which a proximal term closes over


@pytest.mark.parametrize("name", closures())
@pytest.mark.parametrize("place", ["inner", "outer"])
def test_closures(data, name, place):
    net, (batches, query) = models()["mlp"].to(D), data
    START[0] = dict(net.named_parameters())
    more, captured = closures()[name]

    def whole(p, x, y):
        each = F.cross_entropy(functional_call(net, p, (x,)), y, reduction="none")
        return each.mean() + 0.1 * more(p, x, each)

    loss, last = (whole, loss_of(net)) if place == "inner" else (loss_of(net), whole)
    compare(loss, net, batches, [*captured, query[0], batches[1][0]], lambda p: last(p, *query))


def test_what_differs_from_step_to_step(data):
    """Each step closes over tensors of its own, among them results that batches makes."""
    net, (batches, query) = models()["mlp"].to(D), data
    weights, images, rate = [draw(N) for _ in range(K)], draw(K, N, 4), draw(N, 4)
    made = [w.exp() for w in weights]
    loss = lambda p, x, y, k: (made[k] * F.cross_entropy(functional_call(net, p, (x,)), y, reduction="none")).mean()  # noqa: E731

    def batch(k):
        return images[k] * rate.sigmoid() + 0.1 * torch.randn(N, 4, dtype=D), batches[k][1], k

    inputs = [*net.parameters(), *weights, *made, images, rate]
    noise = torch.get_rng_state()
    ours, _ = fastmeta.unroll(loss, net, batch, steps=K, optimiser=fastmeta.SGD(0.3))
    torch.set_rng_state(noise)
    plain = plain_unroll(loss, dict(net.named_parameters()), map(batch, range(K)), sgd, lr=0.3)[0][-1]
    totals = [loss_of(net)(p, *query) for p in (ours, plain)]
    torch.testing.assert_close(*(torch.autograd.grad(total, inputs, retain_graph=True) for total in totals))


def test_gradients_of_a_result_reach_its_own_past_once(data):
    """By .backward(), into .grad, of a graph that another loss goes through as well."""
    net, (batches, query) = models()["mlp"].to(D), data
    leaf = draw(N)
    found = []
    for ours in (True, False):
        copied = copy.deepcopy(net)
        leaf.grad, result = None, leaf.exp()

        def loss(p, x, y, result=result):
            return (result * F.cross_entropy(functional_call(net, p, (x,)), y, reduction="none")).mean()

        if ours:
            after, _ = fastmeta.unroll(loss, copied, batches, optimiser=fastmeta.SGD(0.3))
        else:
            after = plain_unroll(loss, dict(copied.named_parameters()), batches, sgd, lr=0.3)[0][-1]
        (loss(after, *query) + result.sum()).backward()
        found.append([leaf.grad, *(p.grad for p in copied.parameters())])
    torch.testing.assert_close(*found)


def test_a_loop_in_a_loop(data):
    net, (batches, query) = models()["mlp"].to(D), data
    loss, scale = loss_of(net), draw()

    def of_inner(p, x, y):
        after, _ = fastmeta.unroll(loss, p, (x, y), steps=2, optimiser=fastmeta.SGD(scale.exp()))
        return loss(after, *query)

    def plain(p, x, y):
        return loss(plain_unroll(loss, p, [(x, y)] * 2, sgd, lr=scale.exp())[0][-1], *query)

    found = []
    for function in (of_inner, plain):
        after, _ = fastmeta.unroll(function, net, batches[:3], optimiser=fastmeta.SGD(0.2, 0.5))
        found.append(torch.autograd.grad(loss(after, *query), [*net.parameters(), scale, query[0], batches[0][0]]))
    torch.testing.assert_close(*found)


def test_ops_and_checkpoints_inside(data):
    """Kernels of fastmeta in the loss, on what it closes over too, and a checkpointed part."""
    net, (batches, query) = models()["mlp"].to(D), data
    centres = draw(3, 3).tanh()
    inner = lambda p, x: functional_call(net, p, (x,))  # noqa: E731

    def loss(p, x, y):
        outputs = checkpoint(inner, p, x, use_reentrant=False)
        return fastmeta.proto_loss(outputs, centres, y) + fastmeta.mlp_loss(
            [p["2.weight"], p["2.bias"]], x[:, :1].expand(N, 5), y
        )

    compare(loss, net, batches, [centres, query[0]], lambda p: loss(p, *query))

"""The meta-gradients of mlp_meta_loss and of mlp_adapt with mlp_loss over random nets, against finite differences in float64."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastmeta
from harness.mlp_cases import RATES, Mlp, problems

D = torch.float64


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Many small calls: a second thread would mostly wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def meta_loss(params, lr, support_x, support_y, query_x, query_y, **options):
    return fastmeta.mlp_meta_loss(params, lr, support_x, support_y, query_x, query_y, **options)


def adapt_then_loss(params, lr, support_x, support_y, query_x, query_y, *, query_weights=None, **options):
    adapted = fastmeta.mlp_adapt(params, lr, support_x, support_y, **options)
    of_query = {name: options[name] for name in ("activation", "loss")}
    return fastmeta.mlp_loss(adapted, query_x, query_y, weights=query_weights, **of_query)


@dataclass
class MetaProblem:
    """An MLP that adapts to the tasks of `p` in `steps` steps, and their queries. Functions take groups of tensors."""

    p: Mlp
    kind: str
    steps: int
    rates: list[Tensor] = field(repr=False)
    query_x: Tensor = field(repr=False)
    query_y: Tensor = field(repr=False)
    query_weights: Tensor | None = field(repr=False)

    def groups(self) -> dict[str, list[Tensor]]:
        """Everything that can be differentiated."""
        targets = [self.p.y, self.query_y] if self.p.loss == "mse" else []
        return {"parameters": self.p.flat, "rates": self.rates, "examples": [self.p.x, self.query_x, *targets]} | (
            {"weights": [self.p.weights, self.query_weights]} if self.query_weights is not None else {}
        )

    def call(self, way, groups, first_order=False):
        """The query losses [T]."""
        support_x, query_x, *targets = groups["examples"]
        support_y, query_y = targets or (self.p.y, self.query_y)
        params, lr = self.p.tree(groups["parameters"]), self.p.lr(self.kind, groups["rates"])
        options = self.p.options() | {"steps": self.steps, "first_order": first_order}
        options |= dict(zip(("weights", "query_weights"), groups.get("weights", ()), strict=False))
        return way(params, lr, support_x, support_y, query_x, query_y, **options)

    def gradients(self, way, backend, first_order=False) -> dict[str, list[Tensor]]:
        leaves = {name: [t.clone().requires_grad_() for t in group] for name, group in self.groups().items()}
        with fastmeta.backend(backend):
            total = self.call(way, leaves, first_order).sum()
        flat = [t for group in leaves.values() for t in group]
        found = iter(torch.autograd.grad(total, flat, allow_unused=True, materialize_grads=True))
        return {name: [next(found) for _ in group] for name, group in leaves.items()}


@st.composite
def meta_problems(draw):
    p = draw(problems(layers=4))
    kind, steps, queries = draw(st.sampled_from(RATES)), draw(st.integers(1, 6)), draw(st.integers(0, 40))
    widest = max(t.shape[-1] for t in (p.x, *p.flat))  # the curvature grows with it: the inner loop shall not diverge
    rates = [rate * 4 / (4 + widest) for rate in p.rates(kind, steps)]
    query_weights = None if p.weights is None else p.drawn_weights(queries)
    return MetaProblem(p, kind, steps, rates, p.like_x(queries), p.targets(queries), query_weights)


def dot(a, b):
    return sum((x * y).sum() for x, y in zip(a, b, strict=True)).item()


def check_along(m, name, group, gradients):
    """Each of `gradients` against differences along one random direction of unit length in a group of tensors.

    The meta-loss jumps where a unit of ReLU bends within the differences, and rounding spoils the smallest: one must agree.
    """
    direction = [torch.randn_like(t) for t in group]
    length = max(dot(direction, direction), 1e-300) ** 0.5

    def moved(h):
        there = [t + h / length * d for t, d in zip(group, direction, strict=True)]
        return m.call(meta_loss, m.groups() | {name: there}).sum().item()

    steps = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7) if m.p.activation == "relu" else (1e-3, 1e-4, 1e-5)
    numeric = [(moved(-2 * h) - 8 * moved(-h) + 8 * moved(h) - moved(2 * h)) / (12 * h) for h in steps]
    rounding = 16 * torch.finfo(D).eps * (1 + abs(moved(0)))
    for of_group in gradients:
        along = dot(of_group, direction) / length
        usual = (dot(of_group, of_group) / max(sum(t.numel() for t in group), 1)) ** 0.5
        allowed = 1e-6 * max(abs(along), usual)
        assert any(abs(along - n) <= allowed + rounding / h for n, h in zip(numeric, steps, strict=True)), (
            name, along, numeric,
        )  # fmt: skip


@settings(max_examples=60)
@given(meta_problems())
def test_any_net_by_finite_differences(m):
    found = [m.gradients(way, backend) for way in (meta_loss, adapt_then_loss) for backend in ("ext", "reference")]
    for name, group in m.groups().items():
        check_along(m, name, group, [gradients[name] for gradients in found])


def first_order_gradients(m):
    """With v the gradient of the query loss at theta_K: dtheta = v, dalpha_k = -g_k v, and nothing to the support."""
    p, (support_x, query_x, *targets) = m.p, m.groups()["examples"]
    starts, rates = ([t.clone().requires_grad_() for t in group] for group in (p.flat, m.rates))
    theta = [t.expand(p.x.shape[0], *p.core(t)) for t in starts]
    for k in range(m.steps):
        now = p.tree([t.detach() for t in theta])
        _, grads = fastmeta.mlp_grad(now, support_x, p.y, weights=p.weights, **p.options())
        grads = [g for g in grads if g is not None]
        alphas = [rate[k] if "step" in m.kind else rate for rate in rates] * (len(grads) if len(rates) == 1 else 1)
        theta = [t - alpha * g for t, alpha, g in zip(theta, alphas, grads, strict=True)]
    adapted = [t.detach().requires_grad_() for t in theta]
    query = [t.clone().requires_grad_() for t in (query_x, *targets[1:])]
    weights = [m.query_weights.clone().requires_grad_()] if p.weights is not None else []
    options = p.options() | {"weights": weights[0] if weights else None}
    losses = fastmeta.mlp_loss(p.tree(adapted), query[0], query[1] if targets else m.query_y, **options)
    dadapted, dquery, dweights = (
        torch.autograd.grad(losses.sum(), of, retain_graph=True) if of else () for of in (adapted, query, weights)
    )
    found = torch.autograd.grad(theta, [*starts, *rates], dadapted)
    examples = [torch.zeros_like(support_x), dquery[0], *(z for dy in dquery[1:] for z in (torch.zeros_like(p.y), dy))]
    of_weights = {"weights": [torch.zeros_like(p.weights), *dweights]} if weights else {}
    return {
        "parameters": list(found[: len(starts)]),
        "rates": list(found[len(starts) :]),
        "examples": examples,
    } | of_weights


@settings(max_examples=60)
@given(meta_problems())
def test_first_order_by_its_definition(m):
    with fastmeta.backend("reference"):
        expected = first_order_gradients(m)
    for way in (meta_loss, adapt_then_loss):
        for backend in ("ext", "reference"):
            torch.testing.assert_close(m.gradients(way, backend, first_order=True), expected, rtol=1e-9, atol=1e-12)

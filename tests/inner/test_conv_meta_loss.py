import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmeta
from harness.compare import check_against_reference
from harness.conv_cases import both, ext, kinds, losses, problem, problems, rates_of
from harness.mlp_cases import RATES, lr_of


def make(p, kind, steps, first_order=False, queries=4):
    """The op as a function of everything that can be differentiated, and those tensors."""
    n, rates = len(p.flat), rates_of(p, kind, steps)
    query_x, query_y, mse = p.like_x(queries), p.targets(queries), p.loss == "mse"

    def fn(*t):
        rest = t[n + len(rates) :]
        sx, sy, qx, qy = (rest[0], rest[1], rest[2], rest[3]) if mse else (rest[0], p.y, rest[1], query_y)
        options = p.options() | {"steps": steps, "first_order": first_order}
        return fastmeta.conv_meta_loss(p.tree(t[:n]), lr_of(p, kind, t[n : n + len(rates)]), sx, sy, qx, qy, **options)

    return fn, [*p.flat, *rates, *([p.x, p.y, query_x, query_y] if mse else [p.x, query_x])]


@kinds
@losses
@both
def test_equals_adapt_then_loss(backend, kind, loss):
    p = problem(kind, size=12, loss=loss)
    x, y = p.like_x(6), p.targets(6)
    ours = fastmeta.conv_meta_loss(p.params, 0.1, p.x, p.y, x, y, steps=2, **p.options())
    adapted = fastmeta.conv_adapt(p.params, 0.1, p.x, p.y, steps=2, **p.options())
    torch.testing.assert_close(ours, fastmeta.conv_loss(adapted, x, y, **p.options()))


@pytest.mark.parametrize("kind", RATES)
@pytest.mark.parametrize("first_order", [False, True])
@losses
@ext
def test_all_rates(backend, kind, first_order, loss):
    for shared in (True, False):
        check_against_reference(*make(problem(shared=shared, loss=loss, bias=shared), kind, 3, first_order), "ext")


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from(RATES), st.integers(0, 4), st.booleans())
def test_any_net(p, kind, steps, first_order):
    check_against_reference(*make(p, kind, steps, first_order), "ext")


@ext
def test_float32(backend):
    check_against_reference(*make(problem(channels=17, size=14, dtype=torch.float32), "scalar", 2), "ext")


@both
def test_errors(backend):
    p = problem()
    with pytest.raises(ValueError, match=r"conv_meta_loss: query_y must have shape \[3, 5\], got \[3, 2\]"):
        fastmeta.conv_meta_loss(p.params, 0.1, p.x, p.y, p.x, p.y[:, :2], steps=1, **p.options())
    message = r"blocks\[1\] must leave a pixel of a channel, got query_x of shape \[3, 5, 2, 3, 3\]"
    with pytest.raises(ValueError, match="conv_meta_loss: " + message):
        fastmeta.conv_meta_loss(p.params, 0.1, p.x, p.y, p.x[..., :3, :3], p.y, steps=1, **p.options())

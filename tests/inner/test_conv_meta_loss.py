import pytest
import torch
from hypothesis import strategies as st

import fastmeta
from fastmeta import ConvBlock
from harness.compare import check_against_reference
from harness.conv_cases import any_net, both, ext, kinds, problem, single
from harness.mlp_calls import meta_loss
from harness.mlp_cases import RATES, every_rate, losses

test_any_net = any_net(meta_loss, st.sampled_from(RATES), st.integers(0, 4), st.booleans())


@kinds
@losses
@both
def test_equals_adapt_then_loss(backend, kind, loss):
    p = problem(kind, size=12, loss=loss)
    x, y = p.like_x(6), p.targets(6)
    ours = fastmeta.conv_meta_loss(p.params, 0.1, p.x, p.y, x, y, steps=2, **p.options())
    adapted = fastmeta.conv_adapt(p.params, 0.1, p.x, p.y, steps=2, **p.options())
    torch.testing.assert_close(ours, fastmeta.conv_loss(adapted, x, y, **p.options()))


@every_rate
@ext
def test_all_rates(backend, kind, first_order, loss):
    for shared in (True, False):
        check_against_reference(*meta_loss(problem(shared=shared, loss=loss, bias=shared), kind, 3, first_order), "ext")


@ext
def test_float32(backend):
    """Over several draws: the gradient of a rate is one number."""
    check_against_reference(meta_loss(single(), "scalar", 2)[0], lambda: meta_loss(single(), "scalar", 2)[1], "ext")


@ext
def test_many_blocks_with_rates_of_their_own(backend):
    """More gradients over the tasks than one launch takes."""
    p = problem((ConvBlock(pool=1),) * 12, n=2, channels=2, inputs=1, size=3, T=2)
    check_against_reference(*meta_loss(p, "per element", 1), "ext", cancelling=True)


@pytest.mark.parametrize(("kernel", "padding"), [(1, 1), (2, 2), (2, 1), (5, 2), (9, 0)])
def test_kernels(kernel, padding):
    """A padding that the native kernels do not take, and a kernel as large as the images, which is a linear layer."""
    p = problem((fastmeta.ConvBlock(kernel=kernel, padding=padding, pool=1),))
    found = []
    for chosen in ("auto", "reference"):
        with fastmeta.backend(chosen):
            found.append(fastmeta.conv_meta_loss(p.params, 0.1, p.x, p.y, p.x, p.y, steps=2, **p.options()))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


@both
def test_errors(backend):
    p = problem()
    for x, y, message in (
        (p.x, p.y[:, :2], r"query_y must have shape \[3, 5\], got \[3, 2\]"),
        (p.x[..., :3, :3], p.y, r"blocks\[1\] must leave a pixel of a channel, got query_x of shape \[3, 5, 2, 3, 3\]"),
    ):
        with pytest.raises(ValueError, match="conv_meta_loss: " + message):
            fastmeta.conv_meta_loss(p.params, 0.1, p.x, p.y, x, y, steps=1, **p.options())

"""conv_forward without a linear layer: leaky ReLU, 1 x 1 kernels and blocks that skip."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import fastmeta
from fastmeta import ConvBlock
from fastmeta.inner.conv_forward import conv_forward_and_statistics
from harness.conv_cases import ENCODERS, RESIDUAL, both, features, problem, same
from harness.mlp_calls import forward


def by_torch(blocks, params, x):
    """The features of one task's parameters and images, out of torch's functions."""
    read, handed_on = [], x
    for i, block in enumerate(blocks):
        weight, bias, gamma, beta = params[4 * i : 4 * i + 4]
        x = read[i - block.skip] if block.skip else handed_on
        read.append(x)
        y = F.conv2d(x, weight, bias, block.stride, block.padding)
        if block.norm == "batch":
            y = F.batch_norm(y, None, None, gamma, beta, training=True, eps=block.eps)
        elif block.norm is not None:
            y = F.group_norm(y, block.norm, gamma, beta, block.eps)
        y = y + handed_on if block.skip else y
        handed_on = F.max_pool2d(F.leaky_relu(y, block.slope) if block.relu else y, block.pool)
    return handed_on.flatten(1)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("shared", [False, True])
@both
def test_leaky_relu_1_x_1_kernels_and_skips(backend, kind, shared):
    for options in ({}, {"bias": False}, {"affine": False}):
        p = features(problem(kind, n=6, shared=shared, **options))
        p.x[..., :6] = 0.5  # the first of a window's equal pixels wins
        fn, tensors = forward(p)
        leaves = [t.detach().requires_grad_() for t in tensors]
        ours, found = fn(*leaves), p.tree(leaves[:-1])
        each = ([v if shared or v is None else v[t] for v in found] for t in range(3))
        theirs = torch.stack([by_torch(p.blocks, one, leaves[-1][t]) for t, one in enumerate(each)])
        same([ours], [theirs])
        cotangent = torch.randn_like(ours)
        same(*(torch.autograd.grad(y, leaves, cotangent) for y in (ours, theirs)))


@both
def test_derivatives_through_a_skip(backend):
    blocks = tuple(block._replace(eps=0.5) for block in RESIDUAL)
    fn, tensors = forward(features(problem(blocks, n=2, channels=1, inputs=1, size=2, T=1)))
    leaves = [t.detach().requires_grad_() for t in tensors]
    assert gradcheck(fn, leaves) and gradgradcheck(fn, leaves)


@both
def test_statistics_of_blocks_that_skip(backend):
    p = features(problem("residual", n=7, T=2))
    _, means, variances = conv_forward_and_statistics(p.params, p.x, blocks=p.blocks)
    z = F.conv2d(p.x[1], *p.params[12:14])  # the shortcut's
    same([means[1, 12:], variances[1, 12:]], [z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)])
    assert means.shape == variances.shape == (2, 16)


PLAIN, OPEN = ConvBlock(pool=1), ConvBlock(relu=False, pool=1)
WRONG = (
    ([ConvBlock(slope=1.0)], r"blocks\[0\].slope must be from 0 to below 1, got 1.0"),
    ([ConvBlock(slope=float("nan"))], r"blocks\[0\].slope must be from 0 to below 1, got nan"),
    ([ConvBlock(kernel=2)], r"blocks\[0\].kernel must be 3, or 1 with padding 0, in an encoder, got 2 with padding 1"),
    ([ConvBlock(kernel=1)], r"blocks\[0\].kernel must be 3, or 1 with padding 0, in an encoder, got 1 with padding 1"),
    ([ConvBlock(kernel=5)], r"blocks\[0\].kernel must be 3, or 1 with padding 0, in an encoder, got 5 with padding 1"),
    ([ConvBlock(kernel=1, padding=0)], r"params\[0\] must have shape \[..., out, 2, 1, 1\], got \[4, 2, 3, 3\]"),
    ([ConvBlock(skip=-1)], r"blocks\[0\].skip must be at least 0, got -1"),
    ([PLAIN, OPEN, ConvBlock(skip=1)], r"blocks\[2\].skip must be 0, or from 2 to 2, got 1"),
    ([PLAIN, ConvBlock(skip=2)], r"blocks\[1\].skip must be 0, or from 2 to 1, got 2"),
    (
        [PLAIN, PLAIN, ConvBlock(skip=2)],
        r"blocks\[1\] must have no relu and pool 1, as blocks\[2\] adds to it, got relu=True and pool=1",
    ),
    (
        [PLAIN, OPEN._replace(pool=2), ConvBlock(skip=2)],
        r"blocks\[1\] must have no relu and pool 1, as blocks\[2\] adds to it, got relu=False and pool=2",
    ),
    (
        [PLAIN, OPEN, ConvBlock(skip=2, stride=2)],
        r"blocks\[2\].skip must add numbers of one shape, \[4, 5, 5\], got \[4, 9, 9\] from blocks\[1\]",
    ),
)


@pytest.mark.parametrize(("blocks", "message"), WRONG)
@both
def test_errors_of_encoders(backend, blocks, message):
    sound = tuple(block._replace(kernel=3, padding=1, skip=0) for block in blocks)
    p = features(problem(sound))
    if len(blocks) == 3:
        p.params[8] = p.params[8][:, :2]  # reads the images
    with pytest.raises(ValueError, match="conv_forward: " + message):
        fastmeta.conv_forward(p.params, p.x, blocks=blocks)


@both
def test_only_encoders_take_slope_kernel_and_skip(backend):
    p = problem()
    calls = [fastmeta.conv_loss, fastmeta.conv_grad]
    calls += [lambda params, x, y, blocks: fastmeta.conv_forward(params, x, blocks=blocks)]
    calls += [lambda *args, blocks: fastmeta.conv_adapt(args[0], 0.1, *args[1:], blocks=blocks, steps=1)]
    for call in calls:
        for change in ({"slope": 0.1}, {"skip": 2}):
            (name, came), *_ = change.items()
            op = getattr(call, "__name__", "").replace("<lambda>", "conv_(forward|adapt)")
            message = (
                rf"{op}: blocks\[1\].{name} must be (0|0.0|3) but in conv_forward without a linear layer, got {came}"
            )
            with pytest.raises(ValueError, match=message):
                call(p.params, p.x, p.y, blocks=[ConvBlock(), ConvBlock(**change)])
    loss = fastmeta.conv_loss(p.params, p.x, p.y, blocks=[ConvBlock(relu=False, slope=0.1), ConvBlock()])
    same([loss], [fastmeta.conv_loss(p.params, p.x, p.y, blocks=[ConvBlock(relu=False), ConvBlock()])])

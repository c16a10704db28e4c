"""Random convolutional networks and tasks for the tests of the conv ops, and the same networks out of torch's modules."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastmeta import ConvBlock
from fastmeta.inner._conv import convolved_side, pooled_side
from harness.compare import check_against_reference
from harness.mlp_cases import LOSSES, Problem

D = torch.float64
KINDS = {
    "Conv4": (ConvBlock(), ConvBlock()),
    "group norm": (ConvBlock(norm=2), ConvBlock(norm=4, pool=1)),
    "no norm": (ConvBlock(norm=None), ConvBlock(norm=None, relu=False)),
    "strides": (ConvBlock(stride=2, pool=1), ConvBlock(stride=3, padding=2, pool=1)),
    "one block": (ConvBlock(padding=0, eps=0.1),),
    "means of pixels": (ConvBlock(), ConvBlock(stride=2, pool="mean")),
    "beyond the kernels": (ConvBlock(padding=3, pool=3), ConvBlock()),
}
# Of encoders alone, for 9 x 9 images: a block of a ResNet-12; an addition of what a stride leaves; a sum of three.
RESIDUAL = (ConvBlock(slope=0.1, pool=1),) * 2 + (
    ConvBlock(relu=False, pool=1),
    ConvBlock(padding=0, slope=0.1, kernel=1, skip=3),
)
ENCODERS = {
    "residual": RESIDUAL,
    "residual twice": RESIDUAL * 2,
    "two strides": (
        ConvBlock(pool=1, norm=2, slope=0.3),
        ConvBlock(stride=2, relu=False, pool=1, norm=None),
        ConvBlock(stride=2, padding=0, kernel=1, skip=2, pool=1, norm=4, slope=0.9),
    ),
    "three": (
        ConvBlock(pool=1),
        ConvBlock(relu=False, pool=1),
        ConvBlock(relu=False, pool=1, skip=2, norm=None),
        ConvBlock(skip=2, slope=0.2),
    ),
    "1 x 1": (ConvBlock(padding=0, kernel=1, pool=1, relu=False), ConvBlock(padding=0, kernel=1, slope=0.5, stride=2)),
}
both = pytest.mark.parametrize("backend", ["auto", "reference"], indirect=True)
ext = pytest.mark.parametrize("backend", ["ext"], indirect=True)
kinds = pytest.mark.parametrize("kind", KINDS)


@dataclass(repr=False)
class ConvNet(Problem):
    blocks: tuple[ConvBlock, ...] = ()
    family = "conv"
    __repr__ = Problem.__repr__  # hypothesis prints the fields of a dataclass that has none of its own

    def of_network(self):
        return {"blocks": self.blocks}

    def rates(self, kind, steps):
        """Smaller for many features, on which larger steps would run away."""
        return [rate * min(1, 10 / self.params[-2].shape[-1]) for rate in super().rates(kind, steps)]


def problem(blocks="Conv4", n=5, *, channels=4, inputs=2, size=9, ways=3, T=3, loss="cross_entropy", shared=True,
            bias=True, affine=True, weights=False, dtype=D) -> ConvNet:  # fmt: skip
    """`blocks`: of KINDS or ENCODERS, or such a tuple. ValueError where they leave no pixel."""
    blocks = (KINDS | ENCODERS).get(blocks, blocks)
    lead = () if shared else (T,)

    def drawn(*shape, around=0.0, by=0.5):
        return torch.randn(*lead, *shape, dtype=dtype) * by + around

    params: list[Tensor | None] = []
    sides, side = [], size
    for i, block in enumerate(blocks):
        sides.append(side)
        of_kernel, side = block.kernel, sides[i - block.skip]
        into = inputs if i == block.skip else channels
        params += [
            drawn(channels, into, of_kernel, of_kernel, by=(9 * into) ** -0.5),
            drawn(channels) if bias else None,
        ]
        has_affine = affine and block.norm is not None
        params += [drawn(channels, around=1.0), drawn(channels)] if has_affine else [None, None]
        side = pooled_side(block, convolved_side(block, side))
        if side < 1:
            raise ValueError("no pixel is left")
    features = channels * side * side
    params += [drawn(ways, features, by=features**-0.5), drawn(ways) if bias else None]
    p = ConvNet(params, torch.randn(T, n, inputs, size, size, dtype=dtype), loss, shared, blocks=blocks)
    p.y, p.weights = p.targets(n), p.drawn_weights(n) if weights else None
    return p


@st.composite
def problems(draw, any_side=True):
    """What the native kernels take on a CPU, or on CUDA too: kernels 3 x 3."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    channels = draw(st.integers(1, 20))
    norms = ["batch", None, *(g for g in (1, 2, 3) if channels % g == 0)]
    sides = st.integers(1, 5) if any_side else st.none()
    kernels = draw(st.lists(st.tuples(st.integers(0, 2), sides), min_size=1, max_size=3))
    blocks = tuple(
        ConvBlock(
            draw(st.integers(1, 3)),
            padding,
            draw(st.sampled_from(norms)),
            0.1,  # few numbers may have a variance near 0
            draw(st.booleans()),
            draw(st.sampled_from((1, 2, *["mean"] * (any_side and i + 1 == len(kernels))))),
            kernel=3 if more is None else padding + more,
        )
        for i, (padding, more) in enumerate(kernels)
    )
    n = draw(st.integers(2 if any(block.norm == "batch" for block in blocks) else 0, 5))
    sizes = [size for size in range(3, 40) if _fits(blocks, size)]
    assume(sizes)
    options = {"channels": channels, "inputs": draw(st.integers(1, 9)), "size": draw(st.sampled_from(sizes[:8]))}
    return problem(
        blocks, n, **options, ways=draw(st.integers(1, 6)), T=draw(st.integers(1, 4)), loss=draw(st.sampled_from(LOSSES)),
        shared=draw(st.booleans()), bias=draw(st.booleans()), affine=draw(st.booleans()),
        weights=draw(st.booleans()),
    )  # fmt: skip


def _fits(blocks, size):
    for block in blocks:
        size = pooled_side(block, convolved_side(block, size))
        if size < 1:
            return False
    return True


def any_net(call, *strategies, max_examples=60):
    """A test: `call(p, ...)` on random networks, with values of the strategies, is on the CPU's kernels what the reference gives."""

    @settings(max_examples=max_examples)
    @given(st.data())
    def test(data):
        check_against_reference(*call(data.draw(problems()), *map(data.draw, strategies)), "ext", cancelling=True)

    return test


def single(**options) -> ConvNet:
    """In float32, with channels for whole and broken vectors."""
    return problem(channels=17, size=14, dtype=torch.float32, **options)


def features(p: ConvNet) -> ConvNet:
    """Without the linear layer."""
    p.params[-2:] = [None, None]
    return p


def module(p: ConvNet, t: int) -> nn.Sequential:
    """The network of task t out of torch's modules, with its values."""
    layers: list[nn.Module] = []
    params = p.of_task(t)
    for i, block in enumerate(p.blocks):
        weight, bias, gamma, _ = params[4 * i : 4 * i + 4]
        out, into = weight.shape[:2]
        affine = gamma is not None
        layers.append(nn.Conv2d(into, out, block.kernel, block.stride, block.padding, bias=bias is not None))
        if block.norm == "batch":
            layers.append(nn.BatchNorm2d(out, block.eps, affine=affine, track_running_stats=False))
        elif block.norm is not None:
            layers.append(nn.GroupNorm(block.norm, out, block.eps, affine=affine))
        layers += [nn.ReLU()] if block.relu else []
        layers.append(nn.AdaptiveAvgPool2d(1) if block.pool == "mean" else nn.MaxPool2d(block.pool))
    ways, features = params[-2].shape
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, ways, bias=params[-1] is not None)).to(p.x.dtype)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (v for v in params if v is not None), strict=True):
            parameter.copy_(value)
    return model


def task_loss(outputs: Tensor, y: Tensor) -> Tensor:
    if y.is_floating_point():
        return nn.functional.mse_loss(outputs, y)
    return nn.functional.cross_entropy(outputs, y) if (y != -100).any() else outputs.sum() * 0


def same(ours, theirs):
    """In float64."""
    scale = max(1.0, *(x.abs().max().item() for x in theirs if x.numel()))
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and (a - b).abs().max() <= 1e-10 * scale

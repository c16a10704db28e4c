import pytest
import torch
import torch.nn.functional as F

import fastmeta
from fastmeta import _C, ConvBlock
from fastmeta.inner.conv_forward import conv_forward_and_statistics
from harness.compare import check_against_reference, check_threads
from harness.conv_cases import KINDS, any_net, both, ext, features, kinds, module, problem, same, single
from harness.mlp_calls import forward


def of_encoders(test):
    """By the extension, which has them on a CPU."""
    return pytest.mark.cpu(ext(test))


test_any_net = any_net(forward)


@kinds
@pytest.mark.parametrize("shared", [False, True])
@both
def test_equals_torch_modules(backend, kind, shared):
    for options in ({}, {"bias": False}, {"affine": False}):
        p = problem(kind, shared=shared, size=12, **options)
        expected = [module(p, t)(p.x[t]) for t in range(3)]
        same([fastmeta.conv_forward(p.params, p.x, blocks=p.blocks)], [torch.stack(expected)])


@both
def test_batch_dimensions(backend):
    p = problem("group norm", T=6)
    ours = fastmeta.conv_forward(p.params, p.x.unflatten(0, (2, 3)), blocks=p.blocks)
    assert torch.equal(ours.flatten(0, 1), fastmeta.conv_forward(p.params, p.x, blocks=p.blocks))
    one = fastmeta.conv_forward(p.params, p.x[0], blocks=list(p.blocks))
    torch.testing.assert_close(one, ours[0, 0])
    none = fastmeta.conv_forward(p.params, p.x[:0], blocks=p.blocks)
    assert none.shape == (0, 5, 3)
    assert fastmeta.conv_forward(p.params, p.x[:, :0], blocks=p.blocks).shape == (6, 0, 3)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "means of pixels"])
@pytest.mark.parametrize("shared", [False, True])
@both
def test_features_are_what_torch_modules_flatten(backend, kind, shared):
    for options in ({}, {"bias": False}, {"affine": False}):
        p = problem(kind, n=37, shared=shared, size=12, **options)
        expected = [module(p, t)[:-1](p.x[t]) for t in range(3)]
        same([fastmeta.conv_forward(features(p).params, p.x, blocks=p.blocks)], [torch.stack(expected)])


@of_encoders
@pytest.mark.parametrize("isa", _C.isas())
def test_float32(backend, isa):
    before = _C.isa()
    try:
        _C.set_isa(isa)
        for kind in ("Conv4", "one block"):
            check_against_reference(*forward(single(blocks=kind)), "ext")
        for kind in ("Conv4", "no norm", "strides"):
            check_against_reference(*forward(features(single(blocks=kind, n=35))), "ext")
    finally:
        _C.set_isa(before)


@of_encoders
@pytest.mark.parametrize("isa", _C.isas())
@pytest.mark.parametrize(
    ("channels", "kind"), [(19, "residual twice"), (72, "Conv4"), (72, "residual"), (20, "two strides")]
)
def test_convolutions_by_tiles(backend, isa, channels, kind):
    """Kernels of so many channels are taken at points; gradients to the larger ones are made by all threads at once."""
    p = features(problem(kind, n=35, channels=channels, size=15, T=1))
    fn, tensors = forward(p)
    leaves = [t.detach().requires_grad_() for t in tensors]
    with fastmeta.backend("reference"):
        expected = fn(*leaves)
        cotangent = torch.randn_like(expected)
        gradients = torch.autograd.grad(expected, leaves, cotangent)
    before, threads = _C.isa(), torch.get_num_threads()
    found = []
    try:
        _C.set_isa(isa)
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            out = fn(*leaves)
            found.append([out.detach(), *torch.autograd.grad(out, leaves, cotangent)])
        with torch.no_grad():
            assert torch.equal(fn(*leaves), found[0][0])
    finally:
        _C.set_isa(before)
        torch.set_num_threads(threads)
    same(found[0], [expected.detach(), *gradients])
    assert all(torch.equal(x, y) for other in found[1:] for x, y in zip(found[0], other, strict=True))


@both
@pytest.mark.parametrize("kind", ["no norm", "two strides"])
def test_no_images(backend, kind):
    fn, tensors = forward(features(problem(kind, n=0, channels=20)))
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = fn(*leaves)
    assert out.numel() == 0 and not any(g.any() for g in torch.autograd.grad(out.sum(), leaves))


@of_encoders
def test_gradients_of_features(backend):
    """To kernels, norms and images, of tasks with parameters of their own too; kept from forward, and found again."""
    for kind in ("Conv4", "group norm", "no norm", "strides", "one block"):
        for shared in (False, True):
            fn, tensors = forward(features(problem(kind, n=34, shared=shared, size=12)))
            leaves = [t.detach().requires_grad_() for t in tensors]
            out = fn(*leaves)
            cotangent = torch.randn_like(out)
            first, again = (torch.autograd.grad(out, leaves, cotangent, retain_graph=True) for _ in range(2))
            with fastmeta.backend("reference"):
                expected = torch.autograd.grad(fn(*leaves), leaves, cotangent)
            same(first, expected)
            assert all(map(torch.equal, first, again))


@of_encoders
def test_statistics(backend):
    p = features(problem("Conv4", n=33, size=12))
    _, means, variances = conv_forward_and_statistics(p.params, p.x, blocks=p.blocks)
    with fastmeta.backend("reference"):
        same([means, variances], conv_forward_and_statistics(p.params, p.x, blocks=p.blocks)[1:])
    z = F.conv2d(p.x[0], p.params[0], p.params[1], padding=1)
    same([means[0, :4], variances[0, :4]], [z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)])
    assert not means.requires_grad and not variances.requires_grad


@of_encoders
def test_threads_do_not_change_a_bit(backend):
    p = problem(T=7)
    check_threads(lambda: [fastmeta.conv_forward(p.params, p.x, blocks=p.blocks)])
    fn, tensors = forward(features(problem(n=70, size=12, T=1)))
    leaves = [t.detach().requires_grad_() for t in tensors]
    check_threads(lambda: [out := fn(*leaves), *torch.autograd.grad(out.sin().sum(), leaves)])


def test_what_the_kernels_do_not_take_runs_on_the_reference():
    p = problem("beyond the kernels", size=12)
    deep = problem((ConvBlock(norm=None, pool=1),) * 17, size=3)
    for q, reason in ((p, "takes a padding of at most 2, got 3"), (deep, "takes at most 16 blocks, got 17")):
        fn, tensors = forward(q)
        assert fn(*tensors).shape == (3, 5, 3)
        with (
            pytest.raises(RuntimeError, match=f"conv_forward: a backend must .*\n  ext: {reason}"),
            fastmeta.backend("ext"),
        ):
            fn(*tensors)


@both
def test_errors(backend):
    p = problem()
    right = {"params": p.params, "inputs": p.x, "blocks": p.blocks}

    for wrong, message in (
        ({"blocks": []}, "blocks must be a sequence of at least one ConvBlock, got ..$"),
        ({"blocks": [tuple(p.blocks[0])]}, "blocks must be a sequence of at least one ConvBlock, got .'tuple'."),
        (
            {"blocks": KINDS["one block"]},
            r"params must be a sequence of 6, .weight, bias, gamma, beta. of each of 1 blocks .*, got 10",
        ),
        (
            {"blocks": [ConvBlock(), ConvBlock(pool=1)]},
            r"params\[8\] must have shape \[..., outputs, 64\] for inputs, got \[3, 16\]",
        ),
        ({"inputs": p.x[:, :, :1]}, r"params\[0\] must have shape \[..., out, 1, 3, 3\], got \[4, 2, 3, 3\]"),
        (
            {"params": [p.params[0], p.params[1][:3], *p.params[2:]]},
            r"params\[1\] must have 4 entries, got shape \[3\]",
        ),
        (
            {"blocks": [ConvBlock(norm=None), ConvBlock()]},
            r"params\[2\] must be None, as blocks\[0\] has no norm, got a tensor",
        ),
        (
            {"blocks": [ConvBlock(), ConvBlock(norm=3)]},
            r"blocks\[1\].norm must divide the 4 channels, got 3 groups",
        ),
        (
            {"blocks": [ConvBlock(norm="layer")] * 2},
            r"blocks\[0\].norm must be 'batch', None or a number of groups, got 'layer'",
        ),
        ({"blocks": [ConvBlock(eps=0)] * 2}, r"blocks\[0\].eps must be positive and finite, got 0.0"),
        (
            {"inputs": p.x[..., :3, :3]},
            r"blocks\[1\] must leave a pixel of a channel, got inputs of shape \[3, 5, 2, 3, 3\]",
        ),
        ({"inputs": p.x[0, 0, 0]}, r"inputs must have at least 4 dimensions, got shape \[9, 9\]"),
        (
            {"inputs": p.x[:, :1, :, :3, :3], "blocks": [ConvBlock(padding=0, pool=1), ConvBlock(pool=1)]},
            r"blocks\[0\].norm must be over more than one value, got inputs of shape \[3, 1, 2, 3, 3\]",
        ),
    ):
        with pytest.raises(ValueError, match="conv_forward: " + message):
            fastmeta.conv_forward(**(right | wrong))
    with pytest.raises(TypeError, match=r"conv_forward: blocks\[0\].stride must be an integer, got float"):
        fastmeta.conv_forward(p.params, p.x, blocks=[ConvBlock(stride=1.0)] * 2)


@pytest.mark.cpu
def test_a_bias_before_a_batch_norm_that_is_no_number_reaches_every_gradient():
    inputs = torch.randn(2, 1, 4, 4)
    bias = torch.tensor([0.0, torch.nan])
    params = [torch.randn(2, 1, 3, 3), bias, torch.ones(2), torch.zeros(2), torch.randn(3, 8), None]
    params = [p if p is None else p.requires_grad_() for p in params]
    found = {}
    for backend in ("ext", "reference"):
        with fastmeta.backend(backend):
            out = fastmeta.conv_forward(params, inputs, blocks=[fastmeta.ConvBlock()])
        grads = torch.autograd.grad(out.sum(), [p for p in params if p is not None])
        found[backend] = [g.isnan() for g in (out, *grads[:3])]
    assert all(torch.equal(a, b) for a, b in zip(*found.values(), strict=True)), found

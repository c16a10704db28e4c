from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmeta
from harness.cases import DTYPES, TRITON, interpreted, randn
from harness.compare import check_against_reference, values_and_grads
from harness.dispatched_names import Called

BOTH = pytest.mark.parametrize("backend", TRITON, indirect=True)
# T, images, input channels, height, width, output channels, kernel, stride, padding
# Over a block of channels, weights and pixels: of float64, with parts of a weight gradient; of what has at most four bytes.
LARGE, LARGE_32 = (1, 3, 4, 10, 10, 33, (3, 3), 1, 1), (1, 3, 8, 5, 5, 65, (3, 3), 1, 1)
SHAPES = [
    (1, 1, 1, 1, 1, 1, (1, 1), 1, 0),
    (2, 3, 2, 5, 6, 3, (3, 3), 1, 1),
    (2, 2, 3, 7, 5, 17, (3, 2), 2, 1),
    (2, 2, 2, 8, 7, 3, (2, 3), 3, 2),  # a stride that leaves pixels without a tap
    LARGE,
]


def op(stride=1, padding=0):
    return lambda *tensors: fastmeta.task_conv2d(*tensors, stride=stride, padding=padding)


def draw(T, n, C, H, W, E, kernel, dtype=torch.float64, bias=True):
    tensors = [
        randn(T, n, C, H, W, dtype=dtype),
        randn(T, E, C, *kernel, dtype=dtype) / (C * kernel[0] * kernel[1]) ** 0.5,
    ]
    return [*tensors, randn(T, E, dtype=dtype)] if bias else tensors


def one_by_one(stride, padding):
    """torch's convolution, task after task."""
    return lambda *tensors: torch.stack(
        [F.conv2d(*of_task, stride=stride, padding=padding) for of_task in zip(*tensors, strict=True)]
    )


def with_second(fn):
    """fn's value, its gradients, and those of a function of the gradients."""

    def whole(*tensors):
        y = fn(*tensors)
        grads = torch.autograd.grad(y.sin().sum(), tensors, create_graph=True)
        return (y, *grads, *torch.autograd.grad(sum(g.sin().sum() for g in grads), tensors))

    return lambda tensors: whole(*(t.detach().requires_grad_() for t in tensors))


@BOTH
@pytest.mark.parametrize(("shape", "bias"), zip(SHAPES, (True, False, False, True, True), strict=True), ids=str)
def test_equals_torch_task_by_task(backend, shape, bias):
    """Values, gradients and second derivatives."""
    *sizes, stride, padding = shape
    tensors = draw(*sizes, bias=bias)
    ours, truth = (with_second(fn(stride, padding))(tensors) for fn in (op, one_by_one))
    for found, expected in zip(ours, truth, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (s, d)
        for s in (*SHAPES[:-1], LARGE_32)
        for d in DTYPES
        if not interpreted("triton") or s == SHAPES[2] or d == torch.float32
    ],
    ids=str,
)
def test_matches_reference(dtype, shape):
    """In the slow interpreter float64, which the test above takes, and 16 bits meet one shape."""
    *sizes, stride, padding = shape
    check_against_reference(op(stride, padding), draw(*sizes, dtype=dtype), "triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_second_derivatives_in_every_dtype(dtype):
    """The error is one of that dtype: at most twice the reference's and four roundings."""
    tensors = draw(2, 3, 2, 5, 6, 3, (3, 3), dtype=dtype)
    found = []
    for backend, given_ in (("triton", tensors), ("reference", tensors), ("reference", [t.double() for t in tensors])):
        with fastmeta.backend(backend):
            found.append(with_second(op(2, 1))(given_))
    for ours, plain, truth in zip(*found, strict=True):
        assert ours.dtype == dtype
        error, of_reference, size = (x.double().square().mean().sqrt() for x in (ours - truth, plain - truth, truth))
        assert error <= 2 * of_reference + 4 * torch.finfo(dtype).eps * size


def on_whole(whole, *tensors):
    """torch's convolution task after task of tensors that the tasks may share."""
    return one_by_one(1, 0)(*(t.expand_as(w) for t, w in zip(tensors, whole, strict=True)))


@BOTH
def test_shared_strided_and_leading_dimensions(backend):
    x, weight, bias = draw(4, 2, 2, 4, 4, 3, (2, 2))
    for shared in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)):
        given_ = [t[0] if i in shared else t[:2] for i, t in enumerate((x, weight, bias))]
        whole = [t.expand(2, *t.shape) if i in shared else t for i, t in enumerate(given_)]
        ours = with_second(op())(given_)
        truth = with_second(F.conv2d if len(shared) == 3 else partial(on_whole, whole))(given_)
        torch.testing.assert_close(ours, truth)
    check_against_reference(op(2, 1), [x.unflatten(0, (2, 2)), weight.unflatten(0, (2, 2)), bias[0]], backend)
    strided = [x.mT, weight.transpose(1, 2).flip(-1).transpose(1, 2), bias[:, ::2].repeat(1, 2)[:, :3]]
    check_against_reference(op(1, 1), strided, backend)


@pytest.mark.parametrize("stride", [1, 2])
def test_images_before_tasks_in_memory(stride, monkeypatch):
    """As torch.vmap leaves them, [n, T C, H, W]: nothing is copied, and results lie so too."""
    from fastmeta.kernels import task_conv2d as kernels

    x, weight, bias = draw(3, 2, 2, 6, 6, 4, (3, 3), dtype=torch.float32)
    images_first = x.transpose(0, 1).contiguous().transpose(0, 1)
    check_against_reference(op(stride, 1), [images_first, weight, bias], "triton")
    launched, launch = [], kernels.launch
    monkeypatch.setattr(kernels, "launch", lambda *args, **given: (launched.append(given), launch(*args, **given)))
    (y,), _ = kernels.task_conv2d_fwd(images_first, weight, bias, stride, 1, (True,) * 3)
    dx, dweight, _ = kernels.task_conv2d_bwd((y,), (), images_first, weight, bias, stride, 1, (True,) * 3)
    values, data, weights = launched
    assert values["source"].data_ptr() == weights["x"].data_ptr() == images_first.data_ptr()
    assert data["source"].data_ptr() == weights["dy"].data_ptr() == y.data_ptr()
    assert all(z.transpose(0, 1).is_contiguous() for z in (y, dx))
    (alike,), _ = kernels.task_conv2d_fwd(x, weight, bias, stride, 1, (True,) * 3)
    of_alike = kernels.task_conv2d_bwd((alike,), (), x, weight, bias, stride, 1, (True,) * 3)
    assert torch.equal(y, alike) and torch.equal(dx, of_alike[0]) and torch.equal(dweight, of_alike[1])


def test_gradients_of_what_tasks_share_have_its_shape():
    """From the kernels themselves: autograd would sum them."""
    from fastmeta.kernels.task_conv2d import task_conv2d_bwd

    x, weight, bias = (t[0] for t in draw(4, 2, 2, 4, 4, 3, (2, 2)))
    grads = task_conv2d_bwd((randn(4, 2, 3, 3, 3),), (), x, weight, bias, 1, 0, (True, True, True))
    assert [g.shape for g in grads] == [t.shape for t in (x, weight, bias)]


@BOTH
@pytest.mark.parametrize("sizes", [(0, 2, 1, 3, 3, 2), (2, 0, 1, 3, 3, 2), (2, 2, 1, 3, 3, 0)])
def test_empty(backend, sizes):
    check_against_reference(op(1, 1), draw(*sizes, (3, 3)), backend)
    assert op(1, 1)(*draw(*sizes, (3, 3))).shape == (*sizes[:2], sizes[5], 3, 3)
    x, weight, bias = draw(*sizes, (3, 3))
    if sizes[:2] != (2, 2):  # weights that no task, or no image, has
        shared = [torch.ones(weight.shape[1:], dtype=x.dtype), torch.ones(bias.shape[1:], dtype=x.dtype)]
        assert not any(g.any() for g in values_and_grads(lambda *t: op(1, 1)(x, *t), shared)[1:])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_where_it_is(value):
    """A pixel reaches its own image and the outputs whose taps meet it, also through the masks of a block's edge."""
    x, weight, bias = draw(1, 2, 2, 6, 6, 3, (3, 3))
    x[0, 0, 1, 2, 2] = value
    with fastmeta.backend("triton"):
        spoilt = ~op(1, 1)(x, weight, bias).isfinite()
    assert spoilt[0, 0, :, 1:4, 1:4].all() and spoilt.sum() == 27
    x, weight, bias = draw(1, 2, 2, 6, 6, 3, (3, 3))
    weight[0, 1, 0, 0, 0] = value  # the row before ends within a block of this one
    with fastmeta.backend("triton"):
        spoilt = ~op(1, 1)(x, weight, bias).isfinite()
    assert spoilt[:, :, 1, 1:, 1:].all() and not spoilt[:, :, ::2].any()


@settings(max_examples=4)
@given(
    st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.integers(1, 5),
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(0, 2**31),
)  # fmt: skip
def test_any_shape(T, n, C, H, W, E, kh, kw, stride, padding, seed):
    torch.manual_seed(seed)
    if H + 2 * padding < kh or W + 2 * padding < kw:
        return
    tensors = draw(T, n, C, H, W, E, (kh, kw))
    with fastmeta.backend("triton"):
        ours = with_second(op(stride, padding))(tensors)
    torch.testing.assert_close(ours, with_second(one_by_one(stride, padding))(tensors), rtol=1e-9, atol=1e-9)


PRODUCTS = {"convolution", "convolution_backward", "bmm", "mm", "im2col", "col2im", "baddbmm", "addmm"}


def products_of_second(fn, tensors, monkeypatch):
    """Torch's, in values and derivatives of two orders; the op must not take the mode for a tracer's."""
    monkeypatch.setattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
    called = Called()
    with called:
        with_second(fn)(tensors)
    return called.names & PRODUCTS


def test_kernels_make_every_product_up_to_the_second_derivative(monkeypatch):
    tensors = draw(2, 2, 2, 4, 4, 3, (3, 3))
    with fastmeta.backend("triton"):
        assert products_of_second(op(1, 1), tensors, monkeypatch) == set()
    with fastmeta.backend("reference"):
        for other in (one_by_one(1, 1), op(1, 1)):
            assert products_of_second(other, tensors, monkeypatch) >= {"convolution", "convolution_backward"}


def test_too_large_for_the_kernels():
    x, weight = torch.ones(1).expand(1, 1, 1, 1 << 14, 1 << 14), torch.ones(1, 1, 1, 1, 1)
    with (
        fastmeta.backend("triton"),
        pytest.raises(RuntimeError, match=r"task_conv2d: (?s:.*) fewer than 2\^28 numbers"),
    ):
        fastmeta.task_conv2d(x, weight)


@pytest.mark.cpu
def test_errors():
    x, w, b = torch.ones(2, 3, 2, 4, 4), torch.ones(2, 5, 2, 3, 3), torch.ones(2, 5)
    f = fastmeta.task_conv2d
    for bad, message in (
        (lambda: f(x[0, 0], w), r"x must have at least 4 dimensions, got shape \[2, 4, 4\]"),
        (lambda: f(x, w[0, 0]), r"weight must have at least 4 dimensions, got shape \[2, 3, 3\]"),
        (lambda: f(x, w, b[0, 0]), r"bias must have at least 1 dimensions, got shape \[\]"),
        (
            lambda: f(x, w[:1]),
            r"weight must have the batch dimensions of x, \[2\], or none, got shape \[1, 5, 2, 3, 3\]",
        ),
        (lambda: f(x[:, :, :1], w), r"x and weight must have the same number of input channels, at least one, got"),
        (
            lambda: f(x[:, :, :0], w[:, :, :0]),
            r"x and weight must have the same number of input channels, at least one, got",
        ),
        (lambda: f(x, w, b[:, :4]), r"bias must have a number for each of the 5 output channels, got shape \[2, 4\]"),
        (lambda: f(x[..., :2], w), r"the kernel must hold a pixel and fit into the image with its padding 0, got"),
        (
            lambda: f(x, w[..., :0], padding=1),
            r"the kernel must hold a pixel and fit into the image with its padding 1, got",
        ),
        (lambda: f(x, w, stride=0), "stride must be at least 1, got 0"),
        (lambda: f(x, w, padding=-1), "padding must be at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match="task_conv2d: " + message):
            bad()
    for bad, message in (
        (lambda: f(x, w.double()), "weight must have the dtype of x, torch.float32, got torch.float64"),
        (lambda: f(x.long(), w), "x must be float32, float64, float16 or bfloat16, got torch.int64"),
        (lambda: f(x, w, b.tolist()), "bias must be a tensor, got list"),
        (lambda: f(x, w, stride=(1, 1)), "stride must be an integer, got tuple"),
        (lambda: f(x, w, padding=True), "padding must be an integer, got bool"),
    ):
        with pytest.raises(TypeError, match="task_conv2d: " + message):
            bad()

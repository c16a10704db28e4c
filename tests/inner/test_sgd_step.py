import pytest
import torch

import fastmeta
from harness.cases import DTYPES, KERNELS, PROTO, interpreted, randn
from harness.compare import check_against_reference, check_threads, values_and_grads
from harness.step_cases import dtype_of_lists


def test_by_hand():
    p, g = torch.tensor([1.0, 2.0]), torch.tensor([10.0, -10.0])
    assert fastmeta.sgd_step(p, g, 0.125).tolist() == [-0.25, 3.25]
    assert fastmeta.sgd_step(p, g, torch.tensor([0.125, -0.125])).tolist() == [-0.25, 0.75]
    assert fastmeta.sgd_step(p, g.expand(2, 2), 0.125).tolist() == [[-0.25, 3.25]] * 2


@pytest.mark.parametrize(
    ("backend", "dtype", "rates"),
    [
        (backend, dtype, rates)
        for backend in KERNELS
        for dtype in DTYPES
        for rates in ("number", "scalar", "each", "element", "task")
        if not interpreted(backend) or dtype == torch.float32 or rates == "task"
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_lists_match_reference(backend, rates, shared, dtype):
    dtype = dtype_of_lists(backend, dtype, rates, shared)
    shapes, T = [(3, 5), (7,), (2, 3, 3, 3), (1,), (0, 4)], 3
    lead = () if shared else (T,)
    rate_shapes = {
        "number": [],
        "scalar": [()],
        "each": [()] * len(shapes),
        "element": shapes,
        "task": [(T, *s) for s in shapes],
    }[rates]

    def draw():
        grads = [randn(T, *s, dtype=dtype) for s in shapes]
        return [
            *(randn(*lead, *s, dtype=dtype) for s in shapes),
            *grads,
            *(randn(*s, dtype=dtype) for s in rate_shapes),
        ]

    def fn(*t):
        n = len(shapes)
        lr = {"number": 0.3, "scalar": t[-1]}.get(rates, list(t[2 * n :]))
        return tuple(fastmeta.sgd_step(list(t[:n]), list(t[n : 2 * n]), lr))

    many = rates in ("scalar", "each") and dtype != torch.float64 and not interpreted(backend)
    check_against_reference(fn, draw if many else draw(), backend)


@pytest.mark.parametrize("backend", KERNELS)
def test_large_and_strided(backend):
    check_against_reference(fastmeta.sgd_step, [randn(2, 1500), randn(2, 1500), randn(1500)], backend)
    check_against_reference(
        lambda p, g, a: fastmeta.sgd_step(p.mT, g[:, ::2], a), [randn(4, 3), randn(3, 8), randn(3, 4)], backend
    )


@pytest.mark.parametrize("backend", PROTO, indirect=True)
def test_structures(backend):
    p, g = torch.ones(2), torch.ones(2)
    assert fastmeta.sgd_step({"a": p, "b": p}, {"b": g, "a": 2 * g}, {"b": 0.5, "a": 0.25})["a"].tolist() == [0.5, 0.5]
    assert fastmeta.sgd_step((p, p), (g, g), 0.5)[1].tolist() == [0.5, 0.5]
    assert fastmeta.sgd_step([], [], 0.1) == []
    assert isinstance(fastmeta.sgd_step((p,), [g], 0.5), tuple)


@pytest.mark.cpu
@pytest.mark.parametrize("rates", ["scalar", "each", "element"])
def test_threads_do_not_change_a_bit(rates):
    shapes = [(64, 32, 3, 3), (64,), (5, 1600)]
    tensors = [randn(*lead, *shape, dtype=torch.float32) for lead in ((), (8,)) for shape in shapes]
    lr = {"scalar": [()], "each": [()] * 3, "element": shapes}[rates]
    tensors += [randn(*shape, dtype=torch.float32) for shape in lr]

    def step(*t):
        return fastmeta.sgd_step(list(t[:3]), list(t[3:6]), t[6] if rates == "scalar" else list(t[6:]))

    check_threads(lambda: values_and_grads(step, tensors))


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bits_are_pytorchs(dtype):
    p, g, element = (torch.randn(1003, dtype=dtype) for _ in range(3))
    for rate in (0.1, torch.tensor(0.1, dtype=dtype), element):
        assert torch.equal(fastmeta.sgd_step(p, g, rate), p - rate * g)


def test_errors():
    p, g = torch.ones(2), torch.ones(2)
    for call, message in (
        (lambda: fastmeta.sgd_step(p, torch.ones(3), 0.1), r"the gradient of params must have its shape \[2\]"),
        (lambda: fastmeta.sgd_step([p], [g, g], 0.1), "grads must be a sequence of 1 tensors like params, got 2"),
        (lambda: fastmeta.sgd_step([p], [g], [0.1, 0.1]), "lr must have one entry for each of the 1 params, got 2"),
        (
            lambda: fastmeta.sgd_step({"a": p}, {"b": g}, 0.1),
            r"grads must be a dict with the keys of params, \['a'\], got \['b'\]",
        ),
        (lambda: fastmeta.sgd_step(p, g, float("nan")), "lr must be finite, got nan"),
        (lambda: fastmeta.sgd_step(p, g, torch.ones(3)), r"the rate of params must be 0-dim or have the shape \[2\]"),
        (
            lambda: fastmeta.sgd_step([p], [g], torch.ones(2)),
            r"one lr for all must be a number or a 0-dim tensor, got shape \[2\]",
        ),
    ):
        with pytest.raises(ValueError, match="sgd_step: " + message):
            call()
    for call, message in (
        (lambda: fastmeta.sgd_step(3, g, 0.1), "params must be a tensor, a sequence or a dict of tensors, got int"),
        (lambda: fastmeta.sgd_step(p, g, "fast"), "lr must be a number or a tensor, got str"),
        (lambda: fastmeta.sgd_step(p.long(), g, 0.1), "params must be float32"),
        (lambda: fastmeta.sgd_step(p, g.double(), 0.1), "the gradient of params must have the dtype of params"),
    ):
        with pytest.raises(TypeError, match="sgd_step: " + message):
            call()

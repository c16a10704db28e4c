"""What the tests of the optimisers' steps share. `step(params, grads, *state, lr)` gives parameters and state."""

import pytest
import torch

import fastmeta
from harness.cases import DTYPES, KERNELS, interpreted, randn
from harness.compare import check_against_reference, check_threads, outputs, values_and_grads

SHAPES = [(3, 5), (7,), (1030,), (1,), (0, 4)]
RATES = ("number", "scalar", "each", "element", "task")
LISTS = [  # backend, dtype, rates; float16 and bfloat16 come to the kernels as float32
    (backend, dtype, rates)
    for backend in KERNELS
    for dtype in DTYPES
    for rates in RATES
    if not interpreted(backend) or dtype == torch.float32 or (dtype, rates) == (torch.float64, "task")
]


def check_torch(optimiser, options, ours, states, dtype):
    """Three steps give what torch.optim gives, in float32 or wider; `ours(step, params, grads, state)`."""
    wide = torch.promote_types(dtype, torch.float32)
    p = torch.randn(4, 5, dtype=dtype)
    theirs = torch.nn.Parameter(p.to(wide, copy=True))
    reference = optimiser([theirs], 0.1, **options)
    state = [torch.zeros_like(p, dtype=wide) for _ in range(states)]
    for step in range(1, 4):
        g = torch.randn_like(p)
        theirs.grad = g.to(wide, copy=True)
        theirs.data = p.to(wide, copy=True)
        reference.step()
        p, *state = ours(step, p, g, state)
        assert p.dtype == dtype and all(s.dtype == wide for s in state)
        torch.testing.assert_close(p, theirs.detach().to(dtype))


def dtype_of_lists(backend, dtype, rates, shared):
    """The gradient of one rate for a tensor is a single number: over several draws its error tells, or in float64, where it has all
    digits, over one, which the slow interpreter takes."""
    return torch.float64 if interpreted(backend) and shared and rates in ("scalar", "each") else dtype


def check_lists(step, states, backend, dtype, rates, shared):
    """Lists whose parameters are shared by the tasks or not; some of the state is shared."""
    dtype = dtype_of_lists(backend, dtype, rates, shared)
    T, n = 3, len(SHAPES)
    lead = () if shared else (T,)
    rate_shapes = {
        "number": [], "scalar": [()], "each": [()] * n, "element": SHAPES, "task": [(T, *s) for s in SHAPES],
    }[rates]  # fmt: skip

    def draw():
        shapes = [*((*lead, *s) for s in SHAPES), *((T, *s) for s in SHAPES)]
        shapes += [(*lead, *s) if i == 0 else (T, *s) for _ in range(states) for i, s in enumerate(SHAPES)]
        return [randn(*s, dtype=dtype) for s in (*shapes, *rate_shapes)]

    def fn(*t):
        lists = [list(t[i * n : (i + 1) * n]) for i in range(2 + states)]
        lr = {"number": 0.3, "scalar": t[-1]}.get(rates, list(t[(2 + states) * n :]))
        return outputs(step(*lists, lr))

    many = dtype != torch.float64 and not interpreted(backend)
    check_against_reference(fn, draw if many else draw(), backend)


def check_threads_of(step, states):
    shapes = [(64, 32, 3, 3), (64,), (5, 1600)]
    tensors = [randn(*lead, *s, dtype=torch.float32).abs() for lead in ((), *[(8,)] * (1 + states)) for s in shapes]
    tensors.append(torch.tensor(0.1))

    def fn(*t):
        return outputs(step(*(list(t[i : i + 3]) for i in range(0, len(t) - 1, 3)), t[-1]))

    check_threads(lambda: values_and_grads(fn, tensors))


def check_errors(op, states, options, name):
    """Those that every such op has; `name`: of its first tensors of state."""
    x, call = torch.ones(2), getattr(fastmeta, op)
    rest = [x] * (states - 1)
    for args, kind, message in (
        ((x, torch.ones(3), x, *rest, 0.1), ValueError, r"the gradient of params must have its shape \[2\]"),
        (
            (x, x, torch.ones(3), *rest, 0.1),
            ValueError,
            r"the state of params must have the shape \[2\] of its gradient",
        ),
        (
            ([x], [x], [x, x], *([x] for _ in rest), 0.1),
            ValueError,
            f"{name} must be a sequence of 1 tensors like params",
        ),
        ((x, x, x, *rest, float("nan")), ValueError, "lr must be finite, got nan"),
        ((x, x, x, *rest, torch.ones(3)), ValueError, r"the rate of params must be 0-dim or have the shape \[2\]"),
        ((x, x, x.double(), *rest, 0.1), TypeError, "the state of params must have the dtype of params"),
        ((x.half(), x.bfloat16(), x, *rest, 0.1), TypeError, "the gradient of params must have the dtype of params"),
    ):
        with pytest.raises(kind, match=f"{op}: {message}"):
            call(*args, **options)

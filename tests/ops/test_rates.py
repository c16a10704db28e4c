"""Rates must be finite, in every op and on every way; no tasks at all give no losses, and gradients 0."""

import pytest
import torch

import fastmeta
from harness.argument_cases import arguments, call
from harness.cases import BACKENDS

RATES = {  # what makes of a bad number a bad rate
    "a number": lambda bad, p: bad,
    "a tensor": lambda bad, p: torch.tensor(bad),
    "of each tensor": lambda bad, p: [torch.tensor(0.1), torch.tensor(bad)],
    "of each element": lambda bad, p: [torch.full_like(p[0], 0.1), torch.tensor([0.1, 0.1, bad])],
}


@pytest.mark.cpu
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [*RATES, "of each step"])
@pytest.mark.parametrize("backend", ["auto", "reference"], indirect=True)
def test_a_rate_must_be_finite(kind, bad, backend):
    """One rule for all ways: also where the long way is taken, in float16."""
    for op in ("sgd_step", "momentum_step", "adam_step", "mlp_adapt", "mlp_meta_loss"):
        right = arguments(op)
        for dtype in (torch.float32, torch.float16):
            given = {k: _to(v, dtype) for k, v in right.items()}
            if kind == "of each step":
                if op.endswith("_step"):
                    continue
                rate = torch.tensor([0.1, bad])
            else:
                rate = RATES[kind](bad, right["params"])
            with pytest.raises(ValueError, match=rf"{op}: .* must be finite, got -?{abs(bad)}"):
                call(op, given | {"lr": _to(rate, dtype)})


def _to(value, dtype):
    if isinstance(value, list):
        return [_to(v, dtype) for v in value]
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@pytest.mark.cpu
def test_a_rate_is_not_looked_at_in_a_transform():
    w, g = torch.ones(3), torch.ones(3)
    found = torch.vmap(lambda r: fastmeta.sgd_step(w, g, r))(torch.tensor([0.5, float("nan")]))
    torch.testing.assert_close(found, torch.stack([w / 2, w * float("nan")]), equal_nan=True)


@pytest.mark.parametrize(
    ("op", "backend"),
    [(op, backend) for op, backends in BACKENDS.items() for backend in backends if op != "hvp"],
    indirect=["backend"],
)
def test_no_tasks(op, backend):
    given = {name: _without_tasks(value) for name, value in arguments(op).items()}
    found = call(op, given)
    assert all(y.shape[0] == 0 for y in found)
    leaves = [t for value in given.values() for t in (value if isinstance(value, list) else [value])]
    leaves = [t for t in leaves if isinstance(t, torch.Tensor) and t.requires_grad]
    grads = torch.autograd.grad(sum(y.sum() for y in found), leaves, allow_unused=True, materialize_grads=True)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(grads, leaves, strict=True))


def _without_tasks(value):
    if isinstance(value, list):
        return [_without_tasks(v) for v in value]
    if not isinstance(value, torch.Tensor):
        return value
    has_tasks = value.ndim > 1 and len(value) == 2
    return (value[:0] if has_tasks else value).clone().requires_grad_(value.is_floating_point())

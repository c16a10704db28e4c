from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastmeta.data import Episodes, Sinusoid

pytestmark = pytest.mark.cpu


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fit(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Amplitude, phase and largest error of the least-squares A sin(x - phase) of each task."""
    x, y = x.double(), y.double()
    basis = torch.cat([x.sin(), x.cos()], dim=-1)  # [T, n, 2]: A cos(phase), -A sin(phase)
    weights = torch.linalg.lstsq(basis, y).solution
    error = (basis @ weights - y).abs().amax((1, 2))
    a, b = weights[:, 0, 0], weights[:, 1, 0]
    return torch.hypot(a, b), torch.atan2(-b, a), error


@settings(max_examples=30)
@given(tasks=st.integers(1, 6), shots=st.integers(1, 6), queries=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_shapes_and_ranges(tasks: int, shots: int, queries: int, seed: int) -> None:
    drawn = Sinusoid().sample(tasks, shots, queries, generator=seeded(seed))
    assert isinstance(drawn, Episodes)
    assert drawn.support_x.shape == drawn.support_y.shape == (tasks, shots, 1)
    assert drawn.query_x.shape == drawn.query_y.shape == (tasks, queries, 1)
    assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in drawn)
    assert float(torch.cat([drawn.support_x, drawn.query_x], dim=1).abs().max()) <= 5
    assert float(torch.cat([drawn.support_y, drawn.query_y], dim=1).abs().max()) <= 5


def test_support_and_query_of_a_task_share_one_curve_of_the_published_family() -> None:
    drawn = Sinusoid().sample(500, 8, 12, generator=seeded(), dtype=torch.float64)
    x = torch.cat([drawn.support_x, drawn.query_x], dim=1)
    y = torch.cat([drawn.support_y, drawn.query_y], dim=1)
    amplitude, phase, error = fit(x, y)
    assert float(error.max()) < 1e-9
    assert float(amplitude.min()) >= 0.1 - 1e-6 and float(amplitude.max()) <= 5 + 1e-6
    assert float(phase.min()) >= -1e-6 and float(phase.max()) <= math.pi + 1e-6
    # Means of uniform draws, within 5 standard errors of 500.
    for values, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, math.pi), (x[:, 0, 0], -5.0, 5.0)):
        bound = 5 * (high - low) / math.sqrt(12 * 500)
        assert abs(float(values.mean()) - (low + high) / 2) < bound
        assert float(values.std()) == pytest.approx((high - low) / math.sqrt(12), rel=0.1)


def test_a_frequency_is_the_tasks_own_and_changes_nothing_else() -> None:
    plain, drawn = (
        Sinusoid(**f).sample(300, 4, 2, generator=seeded(), dtype=torch.float64)
        for f in ({}, {"frequency": (0.5, 0.9)})
    )
    assert torch.equal(plain.support_x, drawn.support_x) and not torch.equal(plain.support_y, drawn.support_y)
    for whole in (1, 1.0):
        same = Sinusoid(frequency=[whole, whole]).sample(300, 4, 2, generator=seeded(), dtype=torch.float64)
        assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))
    # A sin(f x - phase) with the A and phase of `plain`: the first solution for f of each task fits its other points.
    amplitude, phase, _ = fit(
        torch.cat([plain.support_x, plain.query_x], 1), torch.cat([plain.support_y, plain.query_y], 1)
    )
    grid = torch.linspace(0.5, 0.9, 4001, dtype=torch.float64)
    x, y = drawn.support_x[..., 0], drawn.support_y[..., 0]
    curves = amplitude[:, None, None] * torch.sin(grid[:, None] * x[:, None] - phase[:, None, None])  # [T, f, S]
    error, best = (curves - y[:, None]).abs().amax(2).min(1)
    assert float(error.max()) < 3e-3
    found = grid[best]
    assert (
        abs(float(found.mean()) - 0.7) < 0.05 and 0.49 < float(found.min()) < 0.52 and 0.88 < float(found.max()) < 0.91
    )


def test_tasks_are_fresh_and_the_generator_decides() -> None:
    generator = seeded(3)
    first, second = (Sinusoid().sample(4, 5, 5, generator=generator) for _ in range(2))
    again = Sinusoid().sample(4, 5, 5, generator=seeded(3))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.support_x, second.support_x)
    assert not torch.equal(first.support_x[0], first.support_x[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_dtype_gives_the_same_tasks_rounded(dtype: torch.dtype) -> None:
    exact = Sinusoid().sample(20, 5, 5, generator=seeded(), dtype=torch.float64)
    drawn = Sinusoid().sample(20, 5, 5, generator=seeded(), dtype=dtype)
    assert all(tensor.dtype == dtype for tensor in drawn)
    assert torch.equal(drawn.support_x, exact.support_x.to(dtype))
    # x, the phase and A are rounded before the sine: |dy| <= 5 (|dx| + |dphase|) + |dA| + |dy rounded|.
    eps = torch.finfo(dtype).eps
    assert float((drawn.query_y.double() - exact.query_y).abs().max()) <= 5 * (5 + math.pi) * eps + 10 * eps


def test_the_device_is_the_generators_unless_named() -> None:
    assert Sinusoid().sample(1, 1, 1).support_x.device == torch.get_default_device()
    assert Sinusoid().sample(1, 1, 1, generator=seeded()).support_x.device.type == "cpu"
    assert Sinusoid().sample(1, 1, 1, device="meta").query_y.device.type == "meta"
    with pytest.raises(ValueError, match=r"^Sinusoid.sample: generator must be on meta, got one on cpu$"):
        Sinusoid().sample(1, 1, 1, generator=seeded(), device="meta")

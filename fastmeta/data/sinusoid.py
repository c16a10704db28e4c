"""The sinusoid regression tasks of MAML."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .. import _check as _tensors
from . import _check
from .episodes import Episodes
from .task_generator import TaskGenerator, place
from .task_generator import uniform as unit_uniform


class Sinusoid:
    """y = A sin(frequency x - phase), one of each a task: A ~ U[0.1, 5], phase ~ U[0, pi] (radians), x ~ U[-5, 5].

    `frequency`: (low, high), in radians: frequency ~ U[low, high]; (1, 1) is MAML's family of tasks. Where both are equal
    nothing is drawn for it, so that a generator gives all of these families the same A, phase and x.

    Errors: TypeError for a frequency that is no pair of real numbers; ValueError where they are not finite or low > high.

    Source: Finn et al. 2017, arXiv:1703.03400, section 5.1; a frequency for each task: Li et al. 2017, arXiv:1707.09835.
    """

    amplitude = (0.1, 5.0)
    phase = (0.0, math.pi)
    inputs = (-5.0, 5.0)

    def __init__(self, *, frequency: Sequence[float] = (1.0, 1.0)) -> None:
        self.frequency = _check.interval("Sinusoid", "frequency", frequency)

    def sample(
        self,
        tasks: int,
        shots: int,
        queries: int,
        *,
        generator: torch.Generator | TaskGenerator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Episodes:
        """T fresh tasks with S = shots and Q = queries points: x and y of [T, S, 1] and [T, Q, 1].

        Drawn on `device` (the generator's where none is named, else torch's default) in float32 and rounded to `dtype`,
        so that a generator gives the same tasks in every dtype; the sine is computed in float32 or better.

        Errors: ValueError for counts below 1, more than 2**40 numbers in a batch, a device that is not here, a generator
        on another device or of other tasks; TypeError for counts that are no ints and for a dtype other than float32,
        float64, float16, bfloat16.
        """
        op = "Sinusoid.sample"
        tasks, shots, queries = _check.positive(op, tasks=tasks, shots=shots, queries=queries)
        _check.room(op, "tasks", tasks * (shots + queries))
        if dtype not in _tensors.FLOATING:
            raise TypeError(f"{op}: dtype must be float32, float64, float16 or bfloat16, got {dtype}")
        device = place(op, generator, None if device is None else _check.device(op, device), tasks)

        def uniform(bounds: tuple[float, float], count: int) -> torch.Tensor:
            low, high = bounds
            return (low + (high - low) * unit_uniform(generator, device, tasks, count, 1)).to(dtype)

        exact = torch.promote_types(dtype, torch.float32)
        amplitude, phase = uniform(self.amplitude, 1).to(exact), uniform(self.phase, 1).to(exact)
        x = uniform(self.inputs, shots + queries)  # [T, S + Q, 1]
        low, high = self.frequency
        frequency: torch.Tensor | float = low if low == high else uniform(self.frequency, 1).to(exact)
        y = (amplitude * torch.sin(frequency * x.to(exact) - phase)).to(dtype)
        (support_x, query_x), (support_y, query_y) = (z.split([shots, queries], dim=1) for z in (x, y))
        return Episodes(*(z.contiguous() for z in (support_x, support_y, query_x, query_y)))

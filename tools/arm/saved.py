"""What driver.cpp reads: doubles alone. A number is one; an array its length, then its elements (none: -1). What a kernel is to write is
an array of the reference's, in float64. A problem is drawn several times: behind these come the errors that its results may have."""

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from harness.compare import allowed_error, values_and_grads

Pair = tuple[Tensor, Tensor]  # the reference's result in float64, and in the dtype of the problem


class Saved:
    def __init__(self) -> None:
        self.values = array("d")
        self.dtype = torch.float64
        self.pairs: list[Pair] = []  # of a draw

    def problem(self, family: int, write: Callable[[], None], dtype: torch.dtype) -> None:
        """One draw in float64; eight in less, where one element may carry a result's error, as check_against_reference has it."""
        self.dtype, drawn = dtype, []
        draws = 1 if dtype == torch.float64 else 8
        self.numbers(family, dtype.itemsize, draws)
        for _ in range(draws):
            self.pairs = []
            write()
            drawn.append(self.pairs)
        for of_draws in zip(*drawn, strict=True):
            truth, plain = (torch.cat([pair[i].double().flatten().nan_to_num() for pair in of_draws]) for i in (0, 1))
            self.numbers(allowed_error(plain, truth, dtype))

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self.dtype)

    def both(self, fn: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]) -> list[Pair]:
        return list(zip(fn(*(x.double() for x in tensors)), fn(*tensors), strict=True))

    def numbers(self, *values: float) -> None:
        self.values.extend(map(float, values))

    def arrays(self, *xs: Tensor | None) -> None:
        for x in xs:
            self.numbers(*([-1] if x is None else [x.numel(), *x.detach().double().flatten().tolist()]))

    def results(self, *pairs: Pair | None) -> None:
        self.arrays(*(pair and pair[0] for pair in pairs))
        self.pairs += filter(None, pairs)

    def write(self, path: Path) -> None:
        path.write_bytes(self.values.tobytes())


def per_task(fn: Callable, leaves: int) -> Callable[..., list[Tensor]]:
    """Of so many leaves [T, ...], and of cotangents behind them, where there are some: what fn(leaves of a task) gives, and its gradients
    to them, [T, ...]: as the kernels have them, before what tasks share is summed. Labels are leaves too, and get zeros."""

    def run(*tensors: Tensor) -> list[Tensor]:
        tasks = [[x[t] for x in tensors] for t in range(len(tensors[0]))]
        found = [values_and_grads(fn, of_task[:leaves], of_task[leaves:] or None) for of_task in tasks]
        return [torch.stack(of_tasks) for of_tasks in zip(*found, strict=True)]

    return run

"""Random MLPs and tasks for the tests of the mlp ops."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from harness.device import DEVICE

ACTIVATIONS = ("relu", "tanh", "gelu", "sigmoid", "identity")
LOSSES = ("cross_entropy", "mse")
KERNELS = ("ext", "emulated", "emulated-layers") if DEVICE == "cpu" else ("ext",)
native = pytest.mark.parametrize("backend", KERNELS, indirect=True)
native_by_name = pytest.mark.parametrize("backend", KERNELS)  # for tests of hypothesis, which take no fixtures
RATES = ("scalar", "per step", "per tensor", "per tensor and step", "per element", "per element and step")


@dataclass(repr=False)
class Problem:
    """An MLP with T tasks of n examples. Functions of it take flat tensors; `tree` puts them back into a parameter list."""

    params: list[Tensor | None]
    x: Tensor
    y: Tensor
    loss: str
    activation: str
    shared: bool

    @property
    def flat(self) -> list[Tensor]:
        return [p for p in self.params if p is not None]

    def tree(self, tensors):
        remaining = iter(tensors)
        return [None if p is None else next(remaining) for p in self.params]

    def core(self, p: Tensor) -> torch.Size:
        return p.shape if self.shared else p.shape[1:]

    def __repr__(self) -> str:
        widths = [self.x.shape[-1], *(w.shape[-2] for w in self.params[::2])]
        bias = any(b is not None for b in self.params[1::2])
        return (
            f"Problem({widths}, {self.x.shape[1]}, T={self.x.shape[0]}, loss={self.loss!r}, activation={self.activation!r}, "
            f"shared={self.shared}, bias={bias})"
        )

    def options(self) -> dict[str, str]:
        return {"activation": self.activation, "loss": self.loss}


def problem(widths, n, *, T=3, loss="cross_entropy", activation="tanh", shared=True, bias=True, dtype=torch.float64):
    lead = () if shared else (T,)
    params: list[Tensor | None] = []
    for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
        params.append(torch.randn(*lead, outputs, inputs, dtype=dtype) / (2 * max(inputs, 1) ** 0.5))
        params.append(torch.randn(*lead, outputs, dtype=dtype) / 2 if bias else None)
    x = torch.randn(T, n, widths[0], dtype=dtype)
    if loss == "mse":
        y = torch.randn(T, n, widths[-1], dtype=dtype)
    else:
        y = torch.randint(0, widths[-1], (T, n))
        y[torch.rand(T, n) < 0.15] = -100
    return Problem(params, x, y, loss, activation, shared)


def rates_of(p: Problem, kind: str, steps: int) -> list[Tensor]:
    dtype = p.x.dtype
    if kind == "scalar":
        return [torch.tensor(0.1, dtype=dtype)]
    if kind == "per step":
        return [0.2 * torch.rand(steps, dtype=dtype)]
    if kind in ("per tensor", "per tensor and step"):
        return [0.2 * torch.rand((steps,) if "step" in kind else (), dtype=dtype) for _ in p.flat]
    lead = (steps,) if kind == "per element and step" else ()
    return [0.3 * torch.rand(*lead, *p.core(t), dtype=dtype) - 0.05 for t in p.flat]


def lr_of(p: Problem, kind: str, tensors):
    return tensors[0] if kind in ("scalar", "per step") else p.tree(tensors)


def any_problem(data, backend):
    """Smaller where every access to memory is checked, and where tiles are as large for the smallest matrix."""
    sizes = {
        "ext": {},
        "emulated": {"widest": 40, "most": 12},
        "emulated-layers": {"layers": 2, "widest": 20, "most": 9},
    }
    return data.draw(problems(**sizes[backend]))


@st.composite
def problems(draw, layers=3, widest=130, most=40):
    torch.manual_seed(draw(st.integers(0, 2**31)))
    widths = draw(st.lists(st.integers(1, widest), min_size=2, max_size=layers + 1))
    return problem(
        widths,
        draw(st.integers(0, most)),
        T=draw(st.integers(1, 4)),
        loss=draw(st.sampled_from(LOSSES)),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        shared=draw(st.booleans()),
        bias=draw(st.booleans()),
    )

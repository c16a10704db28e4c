"""Random networks and tasks for the tests of the mlp and conv ops; MLPs here, convolutional networks in conv_cases.py."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastmeta
from harness.compare import check_against_reference
from harness.device import DEVICE

ACTIVATIONS = ("relu", "tanh", "gelu", "sigmoid", "identity", "silu", "leaky_relu", "sine")
LOSSES = ("cross_entropy", "mse")
KERNELS = ("ext", "emulated", "emulated-layers") if DEVICE == "cpu" else ("ext",)
native = pytest.mark.parametrize("backend", KERNELS, indirect=True)
everywhere = pytest.mark.parametrize("backend", [*KERNELS, "reference"], indirect=True)
losses = pytest.mark.parametrize("loss", LOSSES)
RATES = ("scalar", "per step", "per tensor", "per tensor and step", "per element", "per element and step")
every_rate = pytest.mark.parametrize(  # each two of these together
    ("kind", "first_order", "loss"),
    [
        (kind, first_order, LOSSES[(i + first_order) % 2])
        for i, kind in enumerate(RATES)
        for first_order in (False, True)
    ],
)


@dataclass(repr=False)
class Problem:
    """A network with T tasks of n examples. Functions of it take flat tensors; `tree` puts them back into a parameter list."""

    params: list[Tensor | None]
    x: Tensor
    loss: str
    shared: bool
    y: Tensor = field(default_factory=lambda: torch.empty(0))
    weights: Tensor | None = None
    batch_per_step: bool = False  # of x, y and weights, with the steps in front
    optimiser: Callable[[Any], Any] | None = None  # of rates
    family = ""  # of its ops

    @property
    def flat(self) -> list[Tensor]:
        return [p for p in self.params if p is not None]

    def tree(self, tensors):
        remaining = iter(tensors)
        return [None if p is None else next(remaining) for p in self.params]

    def core(self, p: Tensor) -> torch.Size:
        return p.shape if self.shared else p.shape[1:]

    def of_task(self, t: int) -> list[Tensor | None]:
        return [p if p is None or self.shared else p[t] for p in self.params]

    @property
    def tasks(self) -> int:
        return self.x.shape[int(self.batch_per_step)]

    def with_batches(self, steps: int):
        """The same with other examples for each step."""
        n, weighted = self.x.shape[1], self.weights is not None
        self.y = torch.stack([self.targets(n) for _ in range(steps)])
        self.weights = torch.stack([self.drawn_weights(n) for _ in range(steps)]) if weighted else None
        self.x, self.batch_per_step = torch.stack([self.like_x(n) for _ in range(steps)]), True
        return self

    def steps(self, rates, steps: int) -> tuple[Any, dict[str, Any]]:
        """The rates and the options of an inner loop."""
        options = {"steps": steps, "batch_per_step": self.batch_per_step}
        if self.optimiser is None:
            return rates, options
        return None, options | {"optimiser": self.optimiser(rates)}

    @property
    def ways(self) -> int:
        return self.params[-2].shape[-2]  # type: ignore[union-attr]

    def vectors(self) -> list[Tensor]:
        return [torch.randn(self.tasks, *self.core(p), dtype=p.dtype) for p in self.flat]

    def like_x(self, n: int) -> Tensor:
        return torch.randn(self.tasks, n, *self.x.shape[2 + self.batch_per_step :], dtype=self.x.dtype)

    def targets(self, n: int) -> Tensor:
        T, ways = self.tasks, self.ways
        if self.loss == "mse":
            return torch.randn(T, n, ways, dtype=self.x.dtype)
        y = torch.randint(0, ways, (T, n))
        y[torch.rand(T, n) < 0.15] = -100
        return y

    def drawn_weights(self, n: int) -> Tensor:
        return torch.randn(self.tasks, n, dtype=self.x.dtype).where(torch.rand(self.tasks, n) > 0.1, 0)

    def rates(self, kind: str, steps: int) -> list[Tensor]:
        dtype = self.x.dtype
        if kind == "scalar":
            return [torch.tensor(0.1, dtype=dtype)]
        if kind == "per step":
            return [0.2 * torch.rand(steps, dtype=dtype)]
        if kind in ("per tensor", "per tensor and step"):
            return [0.2 * torch.rand((steps,) if "step" in kind else (), dtype=dtype) for _ in self.flat]
        lead = (steps,) if kind == "per element and step" else ()
        return [0.3 * torch.rand(*lead, *self.core(t), dtype=dtype) - 0.05 for t in self.flat]

    def lr(self, kind: str, tensors):
        return tensors[0] if kind in ("scalar", "per step") else self.tree(tensors)

    def of_network(self) -> dict[str, Any]:
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        return self.of_network() | {"loss": self.loss}

    def op(self, name: str):
        return getattr(fastmeta, f"{self.family}_{name}")

    def __repr__(self) -> str:
        shapes = [None if p is None else tuple(p.shape) for p in self.params]
        return f"Problem({shapes}, {tuple(self.x.shape)}, {self.options()}, shared={self.shared}, weights={self.weights is not None})"


@dataclass(repr=False)
class Mlp(Problem):
    activation: str = "tanh"
    residual_norm: bool = False
    family = "mlp"
    __repr__ = Problem.__repr__  # hypothesis prints the fields of a dataclass that has none of its own

    def of_network(self):
        return {"activation": self.activation} | ({"residual_norm": True} if self.residual_norm else {})

    @property
    def ways(self):
        return self.params[-2].shape[-1] if self.residual_norm else super().ways


def problem(widths, n, *, T=3, loss="cross_entropy", activation="tanh", shared=True, bias=True, weights=False,
            residual_norm=False, dtype=torch.float64):  # fmt: skip
    lead = () if shared else (T,)
    params: list[Tensor | None] = []
    for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
        params.append(torch.randn(*lead, outputs, inputs, dtype=dtype) / (2 * max(inputs, 1) ** 0.5))
        params.append(torch.randn(*lead, outputs, dtype=dtype) / 2 if bias else None)
    if residual_norm:
        params.append(1 + torch.randn(*lead, widths[-1], dtype=dtype) / 2)
        params.append(torch.randn(*lead, widths[-1], dtype=dtype) / 2 if bias else None)
    x = torch.randn(T, n, widths[0], dtype=dtype)
    p = Mlp(params, x, loss, shared, activation=activation, residual_norm=residual_norm)
    p.y, p.weights = p.targets(n), p.drawn_weights(n) if weights else None
    return p


@st.composite
def problems(draw, layers=3, widest=130, most=40, residual=False):
    torch.manual_seed(draw(st.integers(0, 2**31)))
    widths = draw(st.lists(st.integers(1, widest), min_size=2, max_size=layers + 1))
    residual_norm = residual and draw(st.integers(0, 3)) == 0
    widths[-1] = widths[0] if residual_norm else widths[-1]
    return problem(
        widths, draw(st.integers(0, most)), T=draw(st.integers(1, 4)), loss=draw(st.sampled_from(LOSSES)),
        activation=draw(st.sampled_from(ACTIVATIONS)), shared=draw(st.booleans()), bias=draw(st.booleans()),
        weights=draw(st.booleans()), residual_norm=residual_norm,
    )  # fmt: skip


SIZES = {  # smaller where every access to memory is checked, and where tiles are as large for the smallest matrix
    "ext": {"residual": True},
    "emulated": {"widest": 40, "most": 12},
    "emulated-layers": {"layers": 2, "widest": 20, "most": 9},
}


def any_net(call, *strategies, max_examples=40):
    """A test: `call(p, ...)` on random MLPs, with values of the strategies, is on every native backend what the reference gives."""

    @pytest.mark.parametrize("backend", KERNELS)
    @settings(max_examples=max_examples)
    @given(st.data())
    def test(backend, data):
        p = data.draw(problems(**SIZES[backend]))
        check_against_reference(*call(p, *map(data.draw, strategies)), backend, cancelling=True)

    return test

"""The optimisers of an inner loop: torch.optim's formulas as functions of tensors, which autograd can go through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from .. import _check
from .._dispatch import LOW_PRECISION, forced
from .._torch import tree_leaves, tree_map
from ..reference.adam_step import adam_update
from ..reference.momentum_step import decayed, momentum_update, plus
from ..types import Rate
from .fused_step import FusedStep, Pulled, fuses, is_same_number


class InnerOptimiser:
    """What `unroll` asks of an optimiser. It has no parameters and no state of its own."""

    def __new__(cls, *args: Any, **options: Any) -> Self:
        first = args[0] if args else None
        of_torch = isinstance(first, nn.Module | Iterator) or "params" in options or (args and "lr" in options)
        if of_torch or (isinstance(first, list | tuple) and first and isinstance(first[0], Mapping)):
            raise TypeError(
                f"{cls.__name__}: lr must come first, a rate or rates, got parameters: this is an optimiser of inner loops, and a "
                f"module is trained by torch.optim.{cls.__name__}"
            )
        return super().__new__(cls)

    def values(self) -> dict[str, Rate]:
        """The numbers that may be learned, by name."""
        raise NotImplementedError

    def parameters(self) -> list[nn.Parameter]:
        """Those among the numbers, each once."""
        found = (x for value in self.values().values() for x in tree_leaves(value))
        return list({id(x): x for x in found if isinstance(x, nn.Parameter)}.values())

    def standing(self, others: Iterable[Tensor]) -> Self:
        """The optimiser with `others` in the place of its parameters."""
        known = {id(x): other for x, other in zip(self.parameters(), others, strict=True)}
        own: Any = self
        numbers = {field.name: getattr(own, field.name) for field in fields(own)}
        found: Self = replace(own, **tree_map(lambda x: known.get(id(x), x), numbers))
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors that a parameter has in the state."""
        raise NotImplementedError

    def update(
        self, p: Tensor, g: Tensor, state: Sequence[Tensor], count: int, **values: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One parameter and its state after step number `count`, the first being 1."""
        raise NotImplementedError

    def updates(
        self,
        theta: Sequence[Tensor],
        grads: Sequence[Tensor],
        states: Sequence[Sequence[Tensor]],
        count: int,
        values: Sequence[Mapping[str, Any]],
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """All parameters and their state after step number `count`: in one launch where that can be."""
        step = self._fused(theta, grads, count, values)
        if step is not None:
            return step.run(theta, grads, states, values)
        each = [self.update(p, g, s, count, **v) for p, g, s, v in zip(theta, grads, states, values, strict=True)]
        return [p for p, _ in each], [list(state) for _, state in each]

    def pullback(
        self,
        theta: Sequence[Tensor],
        grads: Sequence[Tensor],
        states: Sequence[Sequence[Tensor]],
        count: int,
        values: Sequence[Mapping[str, Any]],
        dtheta: Sequence[Tensor],
        dstates: Sequence[Sequence[Tensor]],
    ) -> Pulled | None:
        """From the gradients to what `updates` gives, in one launch those to all that it takes; None where there is no such launch."""
        step = self._fused(theta, grads, count, values)
        return None if step is None else step.pullback(theta, grads, states, values, dtheta, dstates)

    def _fused(
        self, theta: Sequence[Tensor], grads: Sequence[Tensor], count: int, values: Sequence[Mapping[str, Any]]
    ) -> FusedStep | None:
        if not theta or forced() == "reference" or not fuses(theta, grads, values):
            return None
        same = is_same_number([v["weight_decay"] for v in values])
        return self.fused(count, values[0] if same else {**values[0], "weight_decay": 0.0})

    def fused(self, count: int, numbers: Mapping[str, Any]) -> FusedStep | None:
        """The op of step number `count` for all parameters, where there is one; `numbers`: the same for all of them, and a weight decay of
        0 where that is not, and comes before."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class SGD(InnerOptimiser):
    r"""g <- g + weight_decay theta,  b <- momentum b + g,  theta <- theta - lr b: the inner optimiser of `fastmeta.unroll`.

    `nesterov`: g + momentum b in place of b. The formulas are those of torch.optim.SGD.

    `lr`, `momentum`, `weight_decay`: a number, or a tensor, 0-dim or `[K]`, one for each step. Or a list or dict in the structure of the
    parameters, each entry a number or a tensor that broadcasts to its parameter (one rate per element), perhaps with `[K]` in front.
    Tensors get gradients. Rates may have any sign. In a list, None stands where the mlp and conv ops have None for a parameter.

    State: "momentum_buffer", where momentum is not 0.

    It trains no module: that is torch.optim.SGD's task. Errors: TypeError and ValueError for wrong values, and for parameters.

    ```python
    import torch
    import fastmeta

    rate = torch.tensor(0.1, requires_grad=True)
    optimiser = fastmeta.SGD(rate, momentum=0.9, weight_decay=5e-4)
    ```
    """

    lr: Rate
    momentum: Rate = 0.0
    weight_decay: Rate = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _normalise(self)
        if self.nesterov and _is_zero(self.momentum):
            raise ValueError("SGD: momentum must not be 0 with nesterov, got 0.0")

    def values(self) -> dict[str, Rate]:
        return {"lr": self.lr, "momentum": self.momentum, "weight_decay": self.weight_decay}

    @property
    def names(self) -> tuple[str, ...]:
        return () if _is_zero(self.momentum) else ("momentum_buffer",)

    def update(
        self, p: Tensor, g: Tensor, state: Sequence[Tensor], count: int, **values: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        start, g = p.to(wide(p)), g.to(wide(p))
        if not state:
            return plus(start, decayed(start, g, values["weight_decay"]), values["lr"], -1).to(p.dtype), ()
        new, b = momentum_update(start, g, state[0], nesterov=self.nesterov, **values)
        return new.to(p.dtype), (b,)

    def fused(self, count: int, numbers: Mapping[str, Any]) -> FusedStep | None:
        if self.names:
            values = {name: numbers[name] for name in ("momentum", "weight_decay")}
            return FusedStep("momentum_step", (), values, (self.nesterov,))
        return None if numbers["weight_decay"] else FusedStep("sgd_step", (), {}, ())


@dataclass(frozen=True, eq=False)
class Adam(InnerOptimiser):
    r"""m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2,  theta <- theta - lr m' / (sqrt(v') + eps), with
    m' = m / (1 - beta1^k) and v' = v / (1 - beta2^k) after step k: the inner optimiser of `fastmeta.unroll`.

    The formulas are those of torch.optim.Adam: weight_decay theta is added to g, eps stands beside the root. Where v is 0, the
    derivative of m' / (sqrt(v') + eps) is its limit, m' having the derivative 1 / eps and the root none, so no gradient is NaN.

    `lr`, `betas`, `weight_decay`: each as `lr` in `fastmeta.SGD`; tensors get gradients. `eps`: a positive number.

    State: "exp_avg" and "exp_avg_sq", of parameters in half precision in float32.

    It trains no module: that is the task of torch.optim.Adam and fastmeta.optim.Adam. Errors: TypeError and ValueError for wrong
    values, and for parameters. Source: Kingma and Ba 2015, arXiv:1412.6980.

    ```python
    import torch
    import fastmeta

    optimiser = fastmeta.Adam([0.1, torch.tensor(0.01)], betas=(0.9, 0.99))
    ```
    """

    lr: Rate
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: Rate = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.betas, list | tuple) or len(self.betas) != 2:
            raise ValueError(f"Adam: betas must be two, got {_check.brief(self.betas)}")
        _normalise(self)
        for i, beta in enumerate(self.betas):
            if isinstance(beta, float) and not 0 <= beta < 1:
                raise ValueError(f"Adam: betas[{i}] must be in [0, 1), got {beta}")
        if not (isinstance(self.eps, float) and self.eps > 0):
            raise ValueError(f"Adam: eps must be a positive number, got {_check.brief(self.eps)}")

    def values(self) -> dict[str, Rate]:
        return {"lr": self.lr, "beta1": self.betas[0], "beta2": self.betas[1], "weight_decay": self.weight_decay}

    @property
    def names(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def update(
        self, p: Tensor, g: Tensor, state: Sequence[Tensor], count: int, **values: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        new, m, v = adam_update(p.to(wide(p)), g.to(wide(p)), state[0], state[1], step=count, eps=self.eps, **values)
        return new.to(p.dtype), (m, v)

    def fused(self, count: int, numbers: Mapping[str, Any]) -> FusedStep | None:
        values = {name: numbers[name] for name in ("beta1", "beta2", "weight_decay")}
        return FusedStep("adam_step", (float(count),), values, (self.eps,))


@dataclass(frozen=True, eq=False)
class AdamEpsHat(Adam):
    r"""Adam with eps beside the root of v itself: theta <- theta - lr sqrt(1 - beta2^k) / (1 - beta1^k) m / (sqrt(v) + eps).

    So higher has it. Numbers are numbers. Source: Kingma and Ba 2015, arXiv:1412.6980, the end of section 2.
    """

    def at(self, count: int) -> Adam:
        """Adam whose step number `count` is the same."""
        beta2: Any = self.betas[1]
        return Adam(self.lr, self.betas, self.eps / (1 - beta2**count) ** 0.5, self.weight_decay)

    def update(
        self, p: Tensor, g: Tensor, state: Sequence[Tensor], count: int, **values: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.at(count).update(p, g, state, count, **values)

    def fused(self, count: int, numbers: Mapping[str, Any]) -> FusedStep | None:
        return self.at(count).fused(count, numbers)


def wide(p: Tensor) -> torch.dtype:
    """Of the state, and of what is computed."""
    return torch.float32 if p.dtype in LOW_PRECISION else p.dtype


def _is_zero(value: Any) -> bool:
    return isinstance(value, float) and value == 0


def _normalise(optimiser: Any) -> None:
    """Numbers become floats, lists of modules plain ones; a number that is not finite is a ValueError."""
    kind = type(optimiser).__name__
    for field in fields(optimiser):
        value = getattr(optimiser, field.name)
        if field.name == "nesterov":
            found: Any = _check.flag(kind, "nesterov", value)
        elif field.name == "betas":
            found = tuple(_rate(kind, f"betas[{i}]", beta) for i, beta in enumerate(value))
        else:
            found = _rate(kind, field.name, value)
        object.__setattr__(optimiser, field.name, found)


def _rate(kind: str, name: str, value: Any) -> Any:
    if isinstance(value, Mapping | nn.ParameterDict):
        return {key: _rate(kind, f"{name}[{key!r}]", entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | nn.ParameterList):
        return [None if entry is None else _rate(kind, f"{name}[{i}]", entry) for i, entry in enumerate(value)]
    return _check.rate(kind, name, value)

"""Optimisers that step the parameters of a module in the module itself; gradients go through the steps."""

from __future__ import annotations

import functools
import sys
from abc import ABCMeta
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..._torch import PARAMETERS
from ...loops.optimisers import SGD, Adam
from .. import _arguments, _library
from .._steps import Container, active, put, root, stepped
from ..recording import Method, Trace, gives_up, method_of
from ._recorded import Listener, listen, settle

__all__ = ["MetaAdam", "MetaOptimizer", "MetaSGD"]
__getattr__ = _library.otherwise("torchopt.optim", __all__)
__path__: list[str] = []  # submodules are the library's

State = dict[int, dict[str, Any]]  # of one module: {place of the parameter: {name: tensor or number}}


class MetaOptimizer(metaclass=ABCMeta):  # noqa: B024  (for __subclasshook__)
    """What MetaSGD and MetaAdam share: `step(loss)` exchanges the parameters of each module for p - lr d, d the direction of the
    method; those that are frozen, or that the loss does not depend on, stay. `state_groups`: the state of each module.

    `MetaOptimizer(module, transformation)`, and a rate that is a schedule, make an optimiser of the installed library."""

    plain = False  # whether d is always g
    _stepped_modules: Sequence[nn.Module] = ()
    _listener: Listener | None = None
    _after: Trace | None = None  # recorded steps whose state is that of the first group, once somebody looks

    def __new__(cls, module: nn.Module, *args: Any, **options: Any) -> Any:
        if cls is MetaOptimizer or callable(options.get("lr", args[0] if args else None)):
            return getattr(_theirs(), cls.__name__)(module, *args, **options)
        return super().__new__(cls)

    @classmethod
    def __subclasshook__(cls, other: type) -> Any:
        """TorchOpt's own optimisers are MetaOptimizers too."""
        theirs = sys.modules.get("torchopt")
        return True if cls is MetaOptimizer and theirs and theirs.MetaOptimizer in other.__mro__ else NotImplemented

    def __init__(self, module: nn.Module, lr: Any, options: Mapping[str, Any]) -> None:
        name = type(self).__name__
        _arguments.scalar(name, "lr", lr)
        for option, value in options.items():
            _arguments.scalar(name, option, value)
        self.lr, self.options = lr, options
        self.param_containers_groups: list[tuple[Container, ...]] = []
        self._states: list[State] = []
        self.add_param_group(module)

    @property
    def state_groups(self) -> list[State]:
        if self._after is not None:
            trace, self._after = self._after, None
            gives_up(trace, "the state of its optimiser was asked for")
            trace.parameters(len(trace.steps))
            self._states[0] = trace.stepper.state if isinstance(trace.stepper, Taken) else {}
        return self._states

    @state_groups.setter
    def state_groups(self, states: list[State]) -> None:
        self._after, self._states = None, states

    def add_param_group(self, module: nn.Module) -> None:
        _arguments.module(type(self).__name__, "module", module)
        settle(module)
        self._stepped_modules = [*self._stepped_modules, module]
        self.param_containers_groups.append(tuple(parts_of(module, PARAMETERS)))
        self.state_groups.append({})
        if self._listener is not None:
            self._listener.settle("a second group of parameters")
            self._listener.stop()
            self._listener = None

    def _listen(self, module: nn.Module, method: Method | None) -> None:
        """From now on steps are recorded: p - lr g where `method` is None."""
        if not isinstance(self.lr, Tensor) or self.lr.ndim == 0:
            rate = float(self.lr) if type(self.lr) is int else self.lr
            stepper = None if method is None else functools.partial(Taken, self._direction)
            self._listener = listen(module, rate, method, stepper)

    def _follows(self, trace: Trace | None) -> bool:
        """Whether the state is that after the steps of the trace."""
        fresh = trace is not None and not trace.steps and self._after is None and self._states == [{}]
        return self.plain or fresh or (trace is not None and self._after is trace)

    def step(self, loss: Tensor) -> None:
        listener = self._listener
        if listener is not None:
            trace = listener.trace
            if self._follows(trace) and listener.step(loss):
                self._after = None if self.plain else trace
                return
            listener.settle("a step that is not recorded")
        _arguments.tensor(f"{type(self).__name__}.step", "loss", loss)
        for module in self._stepped_modules:
            settle(module)
        direction = None if self.plain else self._direction
        for i, held in enumerate(self.param_containers_groups):
            self.state_groups[i] = step_on(held, loss, self.lr, direction, self.state_groups[i])

    def _direction(self, p: Tensor, g: Tensor, state: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """d, and the state after the step."""
        raise NotImplementedError

    def state_dict(self) -> tuple[State, ...]:
        return tuple(self.state_groups)

    def load_state_dict(self, state_dict: Sequence[State]) -> None:
        found = _arguments.listed(type(self).__name__, "state_dict", state_dict)
        if len(found) != len(self._states):
            count = len(self._states)
            raise ValueError(f"{type(self).__name__}: state_dict must have {count} entries, got {len(found)}")
        self._after, self._states[:] = None, found


class MetaSGD(MetaOptimizer):
    """SGD with momentum, nesterov, weight_decay and maximize; without these, d = g.

    `lr`: a number or a tensor with one element. `dampening`: as in torch.optim.SGD, from the second step of a state on; what TorchOpt
    makes of it depends on the steps that an optimiser took before its state was put back. `moment_requires_grad` changes nothing.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float | Tensor,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        moment_requires_grad: bool = True,
        maximize: bool = False,
    ) -> None:
        if nesterov and not active(momentum):
            raise ValueError(f"MetaSGD: momentum must be positive where nesterov is True, got {momentum}")
        super().__init__(module, lr, {"momentum": momentum, "weight_decay": weight_decay, "dampening": dampening})
        self.nesterov, self.maximize = nesterov, maximize
        self.plain = plain_rate(lr, momentum, weight_decay, dampening, nesterov, maximize)
        numbers = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        method = None if self.plain or active(dampening) or maximize else method_of(SGD, **numbers)
        if type(self) is MetaSGD and (self.plain or method is not None):
            self._listen(module, method)

    def _direction(self, p: Tensor, g: Tensor, state: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        g = decayed(p, g, self.options["weight_decay"], self.maximize)
        momentum = self.options["momentum"]
        if not active(momentum):
            return g, {}
        trace = state["trace"] * momentum + (1 - self.options["dampening"]) * g if state else g
        return g + momentum * trace if self.nesterov else trace, {"trace": trace}


class MetaAdam(MetaOptimizer):
    """d = m' / (sqrt(v' + eps_root) + eps), m' and v' the means of g and g^2 over the steps. Where v' + eps_root is 0, its root has
    the gradient 0. `moment_requires_grad` and `use_accelerated_op` change nothing here."""

    def __init__(
        self,
        module: nn.Module,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        eps_root: float = 0.0,
        moment_requires_grad: bool = True,
        maximize: bool = False,
        use_accelerated_op: bool = False,
    ) -> None:
        given = _arguments.listed("MetaAdam", "betas", betas)
        if len(given) != 2:
            raise ValueError(f"MetaAdam: betas must be two numbers, got {len(given)}")
        b1, b2 = given
        options = {"b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay, "eps_root": eps_root}
        super().__init__(module, lr, options)
        if not (b1 < 1 and b2 < 1):
            raise ValueError(f"MetaAdam: betas must be less than 1, got {betas}")
        self.maximize = maximize
        ours = type(self) is MetaAdam and not active(eps_root) and not maximize
        method = method_of(Adam, betas=(b1, b2), eps=eps, weight_decay=weight_decay) if ours else None
        if method is not None:
            self._listen(module, method)

    def _direction(self, p: Tensor, g: Tensor, state: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        b1, b2, eps, weight_decay, eps_root = self.options.values()
        g = decayed(p, g, weight_decay, self.maximize)
        count = state["count"] + 1 if state else 1
        mu = (state["mu"] * b1 if state else 0) + (1 - b1) * g
        nu = (state["nu"] * b2 if state else 0) + (1 - b2) * g * g
        direction = mu / (1 - b1**count) / (root(nu / (1 - b2**count) + eps_root) + eps)
        return direction, {"count": count, "mu": mu, "nu": nu}


class Taken:
    """Recorded steps, taken operation by operation: theta - lr d, and the state."""

    def __init__(self, direction: Any) -> None:
        self.direction = direction
        self.state: State = {}

    def __call__(self, theta: Sequence[Tensor], grads: Sequence[Tensor], rates: Any) -> list[Tensor]:
        chosen = []
        for i, (p, g) in enumerate(zip(theta, grads, strict=True)):
            d, self.state[i] = self.direction(p, g, self.state.get(i, {}))
            chosen.append(d)
        return stepped(theta, chosen, rates)


def decayed(p: Tensor, g: Tensor, weight_decay: float | Tensor, maximize: bool) -> Tensor:
    g = -g if maximize else g
    return g + weight_decay * p if active(weight_decay) else g


def plain_rate(lr: Any, momentum: Any, weight_decay: Any, dampening: Any, nesterov: bool, maximize: bool) -> bool:
    """Whether SGD with these options is p - lr g."""
    return not callable(lr) and not any(map(active, (momentum, weight_decay, dampening, nesterov, maximize)))


def _theirs() -> ModuleType:
    try:
        return _library.load("torchopt")
    except ImportError as error:
        words = "the optimiser must be a MetaSGD or a MetaAdam without a schedule unless torchopt is installed"
        raise NotImplementedError(f"MetaOptimizer: {words}, got {error}") from error


def step_on(
    containers: Sequence[Container], loss: Tensor, lr: float | Tensor, direction: Any = None, state: State | None = None
) -> State:
    """One differentiable step of the parameters that are held there; those that the loss does not depend on stay. `direction`:
    from a parameter, its gradient and its state to what is taken off, and the state afterwards; None: the gradient."""
    held: dict[int, tuple[int, Tensor]] = {}
    for p in (p for of_part in containers for p in of_part.values() if p is not None):
        held.setdefault(id(p), (len(held), p))
    places, params = zip(*((i, p) for i, p in held.values() if p.requires_grad), strict=True) if held else ((), ())
    grads = list(torch.autograd.grad(loss, params, create_graph=True, allow_unused=True))
    after = dict(state or {})
    if direction is not None:
        for j, (i, p, g) in enumerate(zip(places, params, grads, strict=True)):
            if g is not None:
                grads[j], after[i] = direction(p, g, after.get(i, {}))
    put(containers, params, stepped(params, grads, lr))
    return after


def parts_of(module: nn.Module, kind: str) -> list[Container]:
    """The containers PARAMETERS or BUFFERS of a module and its submodules that hold any."""
    return [held for part in module.modules() if (held := getattr(part, kind))]

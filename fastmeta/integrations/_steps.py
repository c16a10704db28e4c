"""Inner steps on the parameters of a module, which stay on the graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._torch import BUFFERS, CHILDREN, COMPILED_CALL, PARAMETERS
from ..inner.sgd_step import sgd_step

SMALL = 1 << 15  # elements: up to here PyTorch's operation for each tensor costs less than one op for all

Module = TypeVar("Module", bound=nn.Module)
Container = dict[str, Any]  # name -> tensor or None


def stepped(params: Sequence[Tensor], grads: Sequence[Tensor | None], rates: Any) -> list[Tensor]:
    """theta - alpha g of every parameter that has a gradient; the others stay. `rates`: one for all, or a list of as many."""
    if type(rates) is float and sum([p.numel() for p in params]) <= SMALL:
        return [p if g is None else p - rates * g for p, g in zip(params, grads, strict=True)]
    several = isinstance(rates, list)
    found = list(params)
    groups = defaultdict(list)  # sgd_step takes tensors of one dtype on one device
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        if g is not None:
            groups[p.dtype, p.device].append((i, p, g))
    for group in groups.values():
        chosen, thetas, slopes = zip(*group, strict=True)
        if several:
            lr: Any = [_rate(rates[i], p) for i, p, _ in group]
        elif isinstance(rates, Tensor) and rates.numel() > 1:
            lr = [_rate(rates, p) for p in thetas]
        else:
            lr = _rate(rates, thetas[0])
        small = sum(p.numel() for p in thetas) <= SMALL
        new = _by_tensor(thetas, slopes, lr) if small else sgd_step(list(thetas), list(slopes), lr)
        for i, theta in zip(chosen, new, strict=True):
            found[i] = theta
    return found


def _by_tensor(params: Sequence[Tensor], grads: Sequence[Tensor], lr: Any) -> list[Tensor]:
    """Two roundings and no fused one: bit for bit the p + (-lr * g) of learn2learn, higher and TorchOpt."""
    rates = lr if isinstance(lr, list) else [lr] * len(params)
    return [p - rate * g for p, g, rate in zip(params, grads, rates, strict=True)]


def _rate(rate: Any, param: Tensor) -> Any:
    """A number, or a tensor as it would take part in rate * gradient."""
    if not isinstance(rate, Tensor):
        return rate
    if rate.dtype != param.dtype or rate.device != param.device:
        rate = rate.to(param)
    if rate.ndim == 0 or rate.shape == param.shape:
        return rate
    return rate.reshape(()) if rate.numel() == 1 else rate.expand_as(param)


def active(option: Any) -> bool:
    """Whether an option of an optimiser does anything; a tensor may be learned, though it is 0 now."""
    return isinstance(option, Tensor) or bool(option)


def root(x: Tensor) -> Tensor:
    """sqrt(x), with the gradient 0 at 0."""
    apart = x != 0  # NaN too
    return torch.where(apart, torch.where(apart, x, 1).sqrt(), 0)


def containers(module: nn.Module) -> list[Container]:
    """Where a module and its submodules hold their parameters and buffers."""
    return [getattr(part, kept) for part in module.modules() for kept in (PARAMETERS, BUFFERS)]


def put(containers: Iterable[Container], old: Iterable[Tensor], new: Iterable[Tensor]) -> None:
    """Every place that holds a tensor of `old` gets the one of `new`."""
    instead = {id(was): now for was, now in zip(old, new, strict=True)}
    for held in containers:
        for name, tensor in held.items():
            if id(tensor) in instead:
                held[name] = instead[id(tensor)]


def take_step(module: nn.Module, params: Sequence[Tensor], grads: Sequence[Tensor | None], rates: Any) -> None:
    """One inner step of `module`, whose `params` have the gradients `grads`."""
    put(containers(module), params, stepped(params, grads, rates))


def copy_of(
    module: Module,
    parameter: Callable[[Tensor], Tensor],
    buffer: Callable[[Tensor], Tensor],
    memo: dict[Any, Tensor] | None = None,
) -> Module:
    """`module` again, down to its submodules, with parameter(p) and buffer(b) in it; what was shared is shared again. `memo`: what
    other copies have made of tensors, by `tensor.data_ptr`, and takes what this one makes."""
    tensors: dict[Any, Tensor] = {} if memo is None else memo
    modules: dict[int, Any] = {}

    def once(tensor: Tensor | None, of: Callable[[Tensor], Tensor]) -> Tensor | None:
        if tensor is None:
            return None
        key = tensor.data_ptr  # the method: equal for the same tensor object, which it keeps alive
        if key not in tensors:
            tensors[key] = of(tensor)
        return tensors[key]

    def copied(part: Any) -> Any:
        if part is None or id(part) in modules:
            return modules.get(id(part))
        kind: type[nn.Module] = type(part)
        modules[id(part)] = clone = kind.__new__(kind)
        clone.__dict__.update(part.__dict__)
        if getattr(clone.__dict__.get(COMPILED_CALL), "of_one_module", False):
            del clone.__dict__[COMPILED_CALL]
        clone.__dict__[PARAMETERS] = {name: once(p, parameter) for name, p in getattr(part, PARAMETERS).items()}
        clone.__dict__[BUFFERS] = {name: once(b, buffer) for name, b in getattr(part, BUFFERS).items()}
        clone.__dict__[CHILDREN] = {name: copied(m) for name, m in getattr(part, CHILDREN).items()}
        return clone

    found: Module = copied(module)
    for clone in modules.values():  # a patched forward, say, which would run on the model's parameters
        bound = {name: held for name, held in vars(clone).items() if type(held) is MethodType}
        for name, method in bound.items():
            if id(method.__self__) in modules:
                clone.__dict__[name] = MethodType(method.__func__, modules[id(method.__self__)])
    return found

"""What `unroll` is called with, checked and brought into one form: a `Loop` and its items."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import _check
from .._torch import tree_flatten, tree_unflatten
from ..networks.called import called
from ..networks.users_model import LOSSES
from ..reference.mlp_loss import task_loss
from .loop import Loop, Slot
from .optimisers import InnerOptimiser, wide

OP = "unroll"
MOST = 2**40


class Items:
    """The tensors of a loop in order, each once."""

    def __init__(self, moving: Iterable[Tensor]) -> None:
        self.tensors = list(moving)
        self.known: dict[int, int] = {}

    def slot(self, x: Tensor, per_step: bool = False) -> Slot:
        place = self.known.setdefault(id(x), len(self.tensors))
        if place == len(self.tensors):
            self.tensors.append(x)
        return Slot(place, per_step)


class Tree:
    """The structure of the parameters."""

    def __init__(self, params: Any, tasks: bool | int) -> None:
        if isinstance(params, nn.ParameterList):
            params = list(params)
        elif isinstance(params, nn.Module):
            params = {name: p for name, p in params.named_parameters() if p.requires_grad}
        elif isinstance(params, Iterator):
            params = list(params)
        if not isinstance(params, Mapping | list | tuple):
            raise TypeError(
                f"{OP}: params must be a dict, a list or a module's parameters, got {type(params).__name__}"
            )
        self.like, (leaves, self.structure) = params, tree_flatten(params)
        if not leaves:
            raise ValueError(f"{OP}: params must hold at least one tensor, got none")
        for i, p in enumerate(leaves):
            _check.floating(OP, **{f"params[{i}]": p})
        if not isinstance(tasks, bool):
            count = _check.integer(OP, "tasks", tasks, 1, MOST)
            leaves = [p.expand(count, *p.shape) for p in leaves]
        self.leaves: list[Tensor] = leaves
        self.tasks = leaves[0].shape[0] if tasks is not False and leaves[0].ndim else None
        if tasks is not False:
            for i, p in enumerate(leaves):
                if not p.ndim or p.shape[0] != self.tasks:
                    raise ValueError(
                        f"{OP}: with tasks=True params[{i}] must have the tasks' axis, [T, ...], as params[0], got "
                        f"{_check.shape(p)}"
                    )

    def of(self, leaves: Sequence[Any]) -> Any:
        """In the structure of the parameters."""
        return tree_unflatten(list(leaves), self.structure)

    def state(self, given: Any, names: Sequence[str]) -> tuple[list[Tensor], int]:
        """The tensors of state, one parameter after the other, and the steps that are behind."""
        if given is None:
            return [torch.zeros_like(p, dtype=wide(p), requires_grad=False) for p in self.leaves for _ in names], 0
        if not isinstance(given, Mapping) or set(given) != {"step", *names}:
            came = sorted(given) if isinstance(given, Mapping) else type(given).__name__
            raise ValueError(f"{OP}: state must be a dict of {['step', *names]}, as a call gives it, got {came}")
        columns = []
        for name in names:
            column, structure = tree_flatten(given[name])
            if structure != self.structure:
                raise ValueError(f"{OP}: state[{name!r}] must have the structure of params, got {structure}")
            for i, (p, x) in enumerate(zip(self.leaves, column, strict=True)):
                _check.floating(OP, **{f"state[{name!r}][{i}]": x})
                if x.shape != p.shape:
                    raise ValueError(
                        f"{OP}: state[{name!r}][{i}] must have the shape of its parameter, {_check.shape(p)}, got {_check.shape(x)}"
                    )
            columns.append([x.to(wide(p)) for p, x in zip(self.leaves, column, strict=True)])
        step = _check.integer(OP, "state['step']", given["step"], 0, MOST)
        return [x for of_param in zip(*columns, strict=True) for x in of_param], step

    def values(self, name: str, given: Any, steps: int, items: Items) -> list[Any]:
        """For each parameter a number or a slot."""
        found = list(self._spread(name, given, self.like))
        leaves = tree_flatten(self.like)[0]
        entries: list[Any] = []
        for p, (x, own) in zip(leaves, found, strict=True):
            if x is None:
                raise ValueError(f"{OP}: {name} must have an entry for each of the params, got None")
            if not isinstance(x, Tensor):
                entries.append(x)
                continue
            per_step = x.ndim == (p.ndim + 1 if own else 1)
            core = list(x.shape[1:] if per_step else x.shape)
            if (per_step and x.shape[0] != steps) or not _broadcasts(
                core, self.leaves[len(entries)].shape if own else ()
            ):
                shapes = f"{_check.shape(p)} or {[steps, *p.shape]}" if own else f"[] or {[steps]}"
                raise ValueError(f"{OP}: {name} must broadcast to {shapes}, got {_check.shape(x)}")
            entries.append(items.slot(x, per_step))
        return entries

    def _spread(self, name: str, given: Any, like: Any) -> Iterator[tuple[Any, bool]]:
        """(entry, whether it is the parameter's own) for each parameter in `like`."""
        if isinstance(like, Tensor):
            yield given, True
        elif isinstance(given, float | Tensor):
            yield from ((given, False) for _ in tree_flatten(like)[0])
        elif isinstance(like, Mapping):
            if not isinstance(given, Mapping) or set(given) != set(like):
                came = list(given) if isinstance(given, Mapping) else type(given).__name__
                raise ValueError(f"{OP}: {name} must be a dict with the keys of params, {list(like)}, got {came}")
            for key, part in like.items():
                yield from self._spread(name, given[key], part)
        else:
            if not isinstance(given, list) or len(given) != len(like):
                count = len(given) if isinstance(given, list) else type(given).__name__
                raise ValueError(f"{OP}: {name} must have an entry for each of {len(like)} params, got {count}")
            for entry, part in zip(given, like, strict=True):
                yield from self._spread(name, entry, part)


def _broadcasts(core: Sequence[int], shape: Sequence[int]) -> bool:
    if math.prod(core) == 1 and len(core) <= len(shape):
        return True
    try:
        return list(torch.broadcast_shapes(core, shape)) == list(shape)
    except RuntimeError:
        return False


def batches_of(given: Any, steps: Any, items: Items) -> tuple[Callable[[int], Sequence[Any]], bool, int]:
    """(k -> what stands in the batch, whether that is drawn, steps)."""
    if steps is not None:
        steps = _check.integer(OP, "steps", steps, 1, MOST)
    if isinstance(given, list):
        if not given or steps not in (None, len(given)):
            raise ValueError(f"{OP}: batches must be one for each of {steps or 'at least one'} steps, got {len(given)}")
        of_steps = [_slots(batch, items) for batch in given]
        return of_steps.__getitem__, False, len(given)
    if callable(given):
        if steps is None:
            raise ValueError(f"{OP}: steps must be given where batches is a function, got None")
        return (lambda k: _one(given(k))), True, steps
    if not isinstance(given, tuple):
        raise TypeError(
            f"{OP}: batches must be a list of tuples, a tuple of tensors or a function, got {type(given).__name__}"
        )
    if steps is not None:
        same = _slots(given, items)
        return (lambda _: same), False, steps
    counts = {x.shape[0] if isinstance(x, Tensor) and x.ndim else None for x in given}
    if len(counts) != 1 or None in counts or 0 in counts:
        raise ValueError(
            f"{OP}: a tuple of batches without steps must have tensors [K, ...] alone, got {counts or 'none'}"
        )
    stacked = [items.slot(x, per_step=True) for x in given]
    return (lambda _: stacked), False, len(given[0])


def _one(batch: Any) -> Sequence[Any]:
    if isinstance(batch, Tensor):
        return (batch,)
    if not isinstance(batch, tuple | list):
        raise TypeError(f"{OP}: a batch must be a tuple of tensors, got {type(batch).__name__}")
    return batch


def _slots(batch: Any, items: Items) -> list[Any]:
    return [items.slot(x) if isinstance(x, Tensor) else x for x in _one(batch)]


def loss_of(loss: Any, tree: Tree) -> Callable[[Sequence[Tensor], Sequence[Any]], Tensor]:
    function = _of_module(loss, tree) if isinstance(loss, nn.Module | tuple) else loss
    if not callable(function):
        raise TypeError(f"{OP}: loss must be a function, a module or (module, criterion), got {type(loss).__name__}")
    return lambda theta, batch: checked("loss", function(tree.of(theta), *batch), tree)


def checked(name: str, found: Any, tree: Tree) -> Tensor:
    """A loss, 0-dim; or [T]."""
    right = isinstance(found, Tensor) and found.is_floating_point()
    if tree.tasks is None:
        if right and found.numel() == 1:
            return found.reshape(())  # type: ignore[no-any-return]
        wanted = "a floating tensor with one element"
    else:
        if right and list(found.shape) == [tree.tasks]:
            return found  # type: ignore[no-any-return]
        wanted = f"a floating tensor with the loss of each task, [{tree.tasks}]"
    came = f"{found.dtype} of shape {_check.shape(found)}" if isinstance(found, Tensor) else type(found).__name__
    raise ValueError(f"{OP}: {name} must return {wanted}, got {came}")


def _of_module(loss: Any, tree: Tree) -> Callable[..., Any]:
    """loss(params, *batch) of a module that gives the loss, or of (module, criterion)."""
    module, criterion = loss if isinstance(loss, tuple) and len(loss) == 2 else (loss, None)
    if not isinstance(module, nn.Module):
        raise TypeError(f"{OP}: loss must be a function, a module or (module, criterion), got {type(module).__name__}")
    if isinstance(criterion, str):
        word = _check.one_of(OP, "criterion", criterion, LOSSES)
        criterion = lambda outputs, targets: task_loss(outputs, targets, word)  # noqa: E731
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    if not isinstance(tree.like, Mapping) and len(names) != len(tree.leaves):
        raise ValueError(f"{OP}: params must be as many as the module's, {len(names)}, got {len(tree.leaves)}")

    def function(params: Any, *batch: Any) -> Any:
        named = params if isinstance(params, Mapping) else dict(zip(names, params, strict=True))
        if criterion is None:
            return called(module, named, batch)
        return criterion(called(module, named, batch[:-1]), batch[-1])

    return function if tree.tasks is None else torch.vmap(function, randomness="different")


def loop_of(
    loss: Any, params: Any, batches: Any, optimiser: Any, state: Any, steps: Any, outer: Any, keep: Any, tasks: Any,
    first_order: Any,
) -> tuple[Loop, Tree, list[Tensor]]:  # fmt: skip
    if not isinstance(optimiser, InnerOptimiser):
        raise TypeError(f"{OP}: optimiser must be a fastmeta.SGD or fastmeta.Adam, got {type(optimiser).__name__}")
    tree = Tree(params, tasks)
    states, before = tree.state(state, optimiser.names)
    items = Items([*tree.leaves, *states])
    at, drawn, count = batches_of(batches, steps, items)
    values = {name: tree.values(name, given, count, items) for name, given in optimiser.values().items()}
    every = 1 if _check.one_of(OP, "keep", keep, ("all", "sqrt")) == "all" else math.isqrt(count - 1) + 1
    loop = Loop(
        loss_of(loss, tree), outers_of(outer, count, tree), optimiser, values, at, drawn, len(tree.leaves), count, before, every,
        _check.flag(OP, "first_order", first_order),
    )  # fmt: skip
    return loop, tree, items.tensors


def outers_of(outer: Any, steps: int, tree: Tree) -> list[Callable[[Sequence[Tensor]], Tensor] | None]:
    """A function of the flat parameters, or None, after each step; none where the parameters are the result."""
    if outer is None:
        return []
    given = outer if isinstance(outer, list | tuple) else [*[None] * (steps - 1), outer]
    if len(given) != steps or not any(given) or not all(f is None or callable(f) for f in given):
        came = f"{len(given)}" if isinstance(outer, list | tuple) else type(outer).__name__
        raise ValueError(f"{OP}: outer must be a function, or a function or None for each of {steps} steps, got {came}")
    return [None if f is None else partial(_outer, f, tree) for f in given]


def _outer(function: Any, tree: Tree, theta: Sequence[Tensor]) -> Tensor:
    return checked("outer", function(tree.of(theta)), tree)

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any, ParamSpec, TypeVar, overload

import torch
from torch import Tensor

from . import _check
from . import reference as references
from ._asked import with_gradients
from ._autograd import gradients, scatter
from ._dispatch import FUSED
from ._layout import flatten, tensors_of, unflatten
from ._torch import any_requires_grad, is_plain, tree_map_only

NAME = "value_and_grad"


P = ParamSpec("P")
V = TypeVar("V")
OfArgument = Tensor | list[Tensor | None]
Several = list[int] | list[str] | list[int | str] | tuple[int | str, ...]
SCALES = {"scale_diag", "scale_tril"}  # by which an op transforms what its kernel takes the gradients to
# Where the arguments with names alone are among an op's own: with the targets in a list.
NAMED = {
    "mlp_loss": {"weights": (2, 1)},
    "conv_loss": {"weights": (2, 1)},
    "mlp_meta_loss": {"weights": (3, 1), "query_weights": (5, 1)},
    "conv_meta_loss": {"weights": (3, 1), "query_weights": (5, 1)},
}


@overload
def value_and_grad(op: Callable[P, V], argnums: int | str = 0) -> Callable[P, tuple[V, OfArgument]]: ...
@overload
def value_and_grad(op: Callable[P, V], argnums: Several) -> Callable[P, tuple[V, tuple[OfArgument, ...]]]: ...
def value_and_grad(op: Callable[..., Any], argnums: int | str | Several = 0) -> Callable[..., tuple[Any, Any]]:
    """A function `run` that returns op(*args, **kwargs) and the gradients of its sum, as jax.value_and_grad does.

    `op`: an op of fastmeta. `argnums`: which of the positional arguments the gradients are to, or "weights" or "query_weights" of
    a loss that has them. One gives the gradient to that argument, several a tuple. A list argument, such as `params`, gives a
    list, None where it has None. The value keeps the op's shape, `[T]` for a loss of T tasks: the tasks are independent, so the
    gradients of the sum hold each task's own.

    On a CPU, `proto_loss`, `mlp_loss`, `mlp_meta_loss`, `conv_loss` and `conv_meta_loss` find both in one native call, and autograd
    takes no part; nor does it on CUDA, from the second call with tensors of the same shapes on. The results then need no gradient. Where
    grad mode is on and an argument requires grad, they stay differentiable, through autograd; so goes every call with a learned metric.
    Under torch.func, torch.compile and autocast the call goes through torch.func.vjp.

    `run(..., out=result)` writes into the tensors of an earlier result and returns it: no memory is taken anew. They share none with
    the arguments or each other; after an error they hold anything. Results that stay differentiable take no `out`.

    Errors: TypeError for another function, and for an argument that is no tensor of floating point; ValueError for a number that
    is no argument's; else as the op. Source: the idiom is JAX's.

    ```python
    import torch
    import fastmeta

    loss_and_grad = fastmeta.value_and_grad(fastmeta.proto_loss, argnums=(0, 1))
    query, prototypes = torch.randn(32, 75, 64), torch.randn(32, 5, 64)
    targets = torch.randint(0, 5, (32, 75))
    losses, (dquery, dprototypes) = loss_and_grad(query, prototypes, targets)
    ```
    """
    name = getattr(op, "__name__", "")
    if name not in references.__all__ or getattr(op, "__module__", "") not in (
        f"fastmeta.distance.{name}",
        f"fastmeta.inner.{name}",
    ):
        raise TypeError(f"{NAME}: op must be an op of fastmeta, got {_check.brief(op)}")
    one = not isinstance(argnums, list | tuple)
    numbers: list[Any] = [argnums] if one else list(argnums)  # type: ignore[arg-type]
    named = NAMED.get(name, {})
    places: tuple[Any, ...] = tuple(
        i if type(i) is str and i in named else _check.integer(NAME, "argnums", i, 0, 31) for i in numbers
    )
    of_op: Any = tuple(named.get(i, i) for i in places)
    if len(set(places)) < max(len(places), 1):
        raise ValueError(f"{NAME}: argnums must be at least one number, each another, got {argnums}")

    fused, of_support = name in FUSED, any(i not in (0, 1) for i in places)

    def run(*args: Any, out: Any = None, **kwargs: Any) -> tuple[Any, Any]:
        wanted = _wanted(name, places, args, kwargs)
        plain = is_plain()
        stays = plain and _stays_differentiable(args, kwargs)
        given = () if out is None else _given(out, stays)
        value, grads = None, None
        by_kernel = fused and plain and not stays and SCALES.isdisjoint(kwargs)
        if by_kernel and not (of_support and kwargs.get("batch_per_step")):
            value, grads = with_gradients(name, of_op, op, args, kwargs, given)
        if grads is None:
            value, grads = _by_autograd(op, places, wanted, args, kwargs)
        if list in map(type, grads):  # one rate for all goes to the op as a list of one
            pairs = zip(grads, wanted, strict=True)
            grads = [g[0] if isinstance(g, list) and isinstance(x, Tensor) else g for g, x in pairs]
        result = value, grads[0] if one else tuple(grads)
        return result if out is None else _written(out, given, result)

    return run


def _given(out: Any, stays: bool) -> tuple[Tensor, ...]:
    if stays:
        raise ValueError(f"{NAME}: out must be None where the results stay differentiable, got tensors to write to")
    return tensors_of(out)


def _written(out: Any, given: tuple[Tensor, ...], result: Any) -> Any:
    """`out`, which holds the results. The kernel has found some there already, perhaps one in another's place."""
    results = tensors_of(result)
    if len(given) == len(results) and all(map(is_, given, results)):
        return out
    kinds = [[(list(x.shape), x.dtype, x.device) for x in tensors] for tensors in (results, given)]
    if kinds[0] != kinds[1]:
        needed, came = ([f"{shape} {dtype} {device}" for shape, dtype, device in kind] for kind in kinds)
        raise ValueError(f"{NAME}: out must be (value, gradients) of tensors {needed}, got {came}")
    own = [
        x if x is to else x.clone() if any(x is y for y in given) else x for x, to in zip(results, given, strict=True)
    ]
    with torch.no_grad():
        for x, to in zip(own, given, strict=True):
            if x is not to:
                to.copy_(x)
    return out


def _wanted(name: str, places: Sequence[Any], args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that the gradients are to, each a tensor or a list of tensors and None."""
    try:
        wanted = [kwargs.get(i) if type(i) is str else args[i] for i in places]
    except IndexError:
        last = max(i for i in places if type(i) is int)
        raise ValueError(
            f"{NAME}: argnums must be of positional arguments, got {last} for the {len(args)} of {name}"
        ) from None
    for x in wanted:
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            _check_wanted(name, places, wanted)
            break
    return wanted


def _check_wanted(name: str, places: Sequence[Any], wanted: Sequence[Any]) -> None:
    for place, x in zip(places, wanted, strict=True):
        for item in x if isinstance(x, list | tuple) else [x]:
            if not (isinstance(item, Tensor) and item.is_floating_point()) and (item is not None or x is None):
                raise TypeError(
                    f"{NAME}: argument {place} of {name} must be of tensors of floating point, got {_check.brief(item)}"
                )


def _stays_differentiable(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    if not torch.is_grad_enabled():
        return False
    if tuple in map(type, args) or tuple in map(type, kwargs.values()):  # autograd's question looks into lists alone
        return any_requires_grad(*flatten((*args, *kwargs.values()))[0])
    return any_requires_grad(*args, *kwargs.values())


def _by_autograd(
    op: Callable[..., Any], places: Sequence[Any], wanted: Sequence[Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Any, list[Any]]:
    """The same for every op and wherever it is called: by torch.autograd, under transforms and tracing by torch.func."""
    flat, layout = flatten(wanted)
    there = [x is not None for x in flat]

    def outputs_of(*tensors: Tensor) -> Any:
        given, named = list(args), {}
        for place, x in zip(places, unflatten(scatter(tensors, there), layout), strict=True):
            if type(place) is str:
                named[place] = x
            else:
                given[place] = x
        return op(*given, **kwargs | named)

    tensors = [x for x in flat if x is not None]
    if is_plain():
        stays = _stays_differentiable(args, kwargs)
        own = [x.view_as(x) if stays and x.requires_grad else x.detach().requires_grad_() for x in tensors]
        with torch.enable_grad():
            value = outputs_of(*own)
            outputs = tensors_of(value)
            found = gradients(outputs, own, [torch.ones_like(y) for y in outputs], create_graph=stays)
        value = value if stays else tree_map_only(Tensor, Tensor.detach, value)
    else:
        value, pullback, *_ = torch.func.vjp(outputs_of, *tensors)
        found = pullback(tree_map_only(Tensor, torch.ones_like, value))
    return value, unflatten(scatter(found, there), layout)

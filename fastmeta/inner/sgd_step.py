from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, overload

from torch import Tensor

from .._route import call, direct
from ..types import Rate
from ._optimiser_step import check_tensors, finite_rates, over_tree

CORES = ((None,), (None,), (None,))  # no fixed ranks: torch.vmap goes through the reference, two elementwise passes
Param = TypeVar("Param", bound=Tensor)


@overload
def sgd_step(params: Tensor, grads: Tensor, lr: Rate) -> Tensor: ...
@overload
def sgd_step(params: list[Param], grads: Sequence[Tensor], lr: Rate) -> list[Tensor]: ...
@overload
def sgd_step(params: tuple[Tensor, ...], grads: Sequence[Tensor], lr: Rate) -> tuple[Tensor, ...]: ...
@overload
def sgd_step(params: Sequence[Tensor], grads: Sequence[Tensor], lr: Rate) -> Sequence[Tensor]: ...
@overload
def sgd_step(params: Mapping[str, Tensor], grads: Mapping[str, Tensor], lr: Rate) -> dict[str, Tensor]: ...
def sgd_step(params: Any, grads: Any, lr: Rate) -> Any:
    r"""theta' = theta - alpha * g, elementwise, for one tensor or a whole list or dict of them in one launch.

    `params` and `grads`: tensors of one shape, sequences, or dicts with the same keys. A parameter may lack the leading task
    axis of its gradient; all tasks then share it: param `[*shape]`, grad `[T, *shape]` -> `[T, *shape]`.
    `lr`: the rates, of any sign. One for all is a number or a 0-dim tensor. In the structure of `params`, each tensor has its
    own: a number, a 0-dim tensor, or one rate per element (Meta-SGD), `[*shape]` or `[T, *shape]`.

    Differentiable in params, grads and rates, to any order. dtypes: float32, float64, float16 or bfloat16, one for all.

    Errors: TypeError for a wrong dtype or what is not a tensor; ValueError for wrong shapes, devices and values, and for a rate
    that is NaN or infinite. Tensors of rates on CUDA and under transforms are not looked at: what such a rate touches is NaN.

    Kernels: Triton (CUDA), native CPU. Sources: Finn et al. 2017, arXiv:1703.03400, eq. 1; Li et al. 2017,
    arXiv:1707.09835, eq. 2.

    ```python
    import torch
    import fastmeta

    params = {"weight": torch.randn(5, 64), "bias": torch.zeros(5)}  # shared
    grads = {"weight": torch.randn(32, 5, 64), "bias": torch.randn(32, 5)}
    params = fastmeta.sgd_step(params, grads, 0.01)  # of each of 32 tasks
    ```
    """
    return over_tree("sgd_step", _step, params, {"grads": grads}, lr)[0]


def _step(names: Sequence[str], params: list[Tensor], grads: list[Tensor], rates: list[Any]) -> list[list[Tensor]]:
    rates = finite_rates("sgd_step", rates)
    if not params:
        return [[]]
    found = direct("sgd_step", (params, grads, rates), (), CORES)
    if found is None:
        check_tensors("sgd_step", names, params, grads, rates)
        found = call("sgd_step", (params, grads, rates), (), CORES)
    return [list(found)]

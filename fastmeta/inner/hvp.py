from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from .. import _check
from .._dispatch import refuse_export
from .._torch import tree_flatten
from ..reference.hvp import hvp as reference

Params = TypeVar("Params")
Vectors = TypeVar("Vectors")


def hvp(fn: Callable[[Params], Tensor], params: Params, vectors: Vectors) -> Vectors:
    r"""H v, H the Hessian of the scalar function `fn` at `params`.

    `params` and `vectors`: a tensor, or lists, tuples and dicts of tensors, nested at will, of equal structure and shapes. The
    product has the same structure. `fn` may use any PyTorch function, fastmeta's included. For the loss of an MLP, `mlp_hvp` is
    faster.

    Differentiable in vectors, params and whatever `fn` closes over, to any order.

    Cost: about two gradients of `fn`. H is never formed.

    Errors: ValueError where the structures or shapes differ, or `fn` does not return one element; RuntimeError inside
    torch.export.

    Source: Pearlmutter 1994, Neural Computation 6(1).

    ```python
    import torch
    import fastmeta

    params, vectors = {"w": torch.randn(5)}, {"w": torch.ones(5)}
    products = fastmeta.hvp(lambda p: p["w"].pow(3).sum(), params, vectors)
    print(products["w"] / params["w"])  # 6, five times
    ```
    """
    refuse_export("hvp")
    if not callable(fn):
        raise TypeError(f"hvp: fn must be a function, got {type(fn).__name__}")
    leaves, structure = tree_flatten(params)
    others, other_structure = tree_flatten(vectors)
    if structure != other_structure:
        raise ValueError(f"hvp: vectors must have the structure of params, {structure}, got {other_structure}")
    if not leaves:
        raise ValueError("hvp: params must hold at least one tensor, got none")
    for i, (p, v) in enumerate(zip(leaves, others, strict=True)):
        _check.floating("hvp", **{f"params[{i}]": p, f"vectors[{i}]": v})
        if p.shape != v.shape:
            raise ValueError(
                f"hvp: vectors[{i}] must have the shape of params[{i}], {_check.shape(p)}, got {_check.shape(v)}"
            )

    def scalar(tree: Params) -> Tensor:
        value = fn(tree)
        if not isinstance(value, Tensor) or value.numel() != 1:
            came = f"shape {_check.shape(value)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"hvp: fn must return a tensor with one element, got {came}")
        return value.reshape(())

    with torch.enable_grad():
        products: Vectors = reference(scalar, params, vectors)
        return products

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .._dispatch import call, direct
from ._mlp import PARAM_CORES, check_like_params, check_loss, check_mlp, in_order, like_params, refuse_labels

CORES = {
    "cross_entropy": (PARAM_CORES, PARAM_CORES, 2, 1),
    "mse": (PARAM_CORES, PARAM_CORES, 2, 2),
}


def mlp_hvp(
    params: Sequence[Tensor | None],
    vectors: Sequence[Tensor | None],
    inputs: Tensor,
    targets: Tensor,
    *,
    activation: str = "relu",
    loss: str = "cross_entropy",
) -> list[Tensor | None]:
    r"""H_t v_t, H_t the Hessian of task t's loss (as `mlp_loss` defines it) with respect to its parameters.

    Shapes: params, inputs, targets as in `mlp_loss`; vectors like params, each with the batch dimensions or without (then one
    vector for all tasks) -> a list like params with the batch dimensions. Nothing is summed over tasks.

    One extra forward and backward pass with tangents; H is never formed. Differentiable in params, vectors, inputs and (mse)
    targets, to any order (the derivative, of third order in the loss, comes from the reference). Errors and dtypes as in
    `mlp_loss`.

    Kernels: native CPU and CUDA C++ (up to 8 layers), forward. Source: Pearlmutter 1994, Neural Computation 6(1).
    """
    op = "mlp_hvp"
    check_loss(op, activation, loss)
    found = direct(op, (params, vectors, inputs, targets), (activation, loss), CORES[loss])
    if found is not None:
        refuse_labels(op, loss, params, targets=targets)
        return in_order(found, params)
    mlp = check_mlp(op, params, inputs=inputs)
    v = check_like_params(op, "vectors", vectors, mlp, params)
    folded = mlp.targets(op, "targets", targets, inputs.shape[-2], loss)
    products = call(op, (mlp.params, v, mlp.examples["inputs"], folded), (activation, loss), CORES[loss])
    return like_params(products, mlp)

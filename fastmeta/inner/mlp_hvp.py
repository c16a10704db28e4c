from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..types import Activation, Curvature, Loss
from ._mlp import PARAM_CORES, check_loss, check_mlp, check_network, layers_of, of_network
from ._network import Param, check_like_params, in_order, like_params, refuse_labels, weighted

CURVATURES = ("hessian", "ggn")
CORES = {
    "cross_entropy": (PARAM_CORES, PARAM_CORES, 2, 1),
    "mse": (PARAM_CORES, PARAM_CORES, 2, 2),
}


def mlp_hvp(
    params: Sequence[Param],
    vectors: Sequence[Param],
    inputs: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    activation: Activation = "relu",
    residual_norm: bool = False,
    loss: Loss = "cross_entropy",
    curvature: Curvature = "hessian",
) -> list[Param]:
    r"""H_t v_t, H_t the Hessian of task t's loss (as `mlp_loss` defines it) with respect to its parameters, or its Gauss-Newton
    part.

    With z the outputs, J = dz/dparams and H_out = d2L/dz2:

    - curvature="hessian": H = J' H_out J + sum_o (dL/dz_o) d2z_o/dparams2.
    - curvature="ggn": J' H_out J v, the generalised Gauss-Newton product. It is symmetric, positive semi-definite where no
      weight is negative, and equal to H for one layer and where dL/dz = 0.

    For mse, H_out is 2/(n C) times the identity. For cross_entropy it is diag(p) - p p', p = softmax(z), over the number of
    examples counted, and 0 for an example left out; J' H_out J is then the Fisher matrix too. An example's weight multiplies its
    part. "ggn" asks the targets only which examples count: mse's may be anything and get the gradient 0.

    Shapes: params, inputs, targets, weights as in `mlp_loss`; vectors like params -> a list like params with the batch dimensions.
    A vector without the batch dimensions serves all tasks. Nothing is summed over tasks.

    Cost: one more forward and backward pass with tangents; for "ggn" one backward pass in all. No matrix is formed.

    Differentiable in params, vectors, inputs, weights and (mse) targets, to any order; the derivative comes from the reference. Errors
    and dtypes as in `mlp_loss`; ValueError for another curvature.

    Kernels: native CPU and CUDA C++ (up to 8 layers), forward. Source: Pearlmutter 1994, Neural Computation 6(1); "ggn":
    Schraudolph 2002, Neural Computation 14(7), and Martens 2010, ICML.

    ```python
    import torch
    import fastmeta

    params = [torch.randn(5, 64), torch.zeros(5)]  # shared by 32 tasks
    vectors = [torch.randn(5, 64), torch.ones(5)]
    x, y = torch.randn(32, 25, 64), torch.randint(0, 5, (32, 25))
    products = fastmeta.mlp_hvp(params, vectors, x, y)
    # [32, 5, 64], [32, 5]
    ```
    """
    op = "mlp_hvp"
    network, loss = check_network(op, activation, residual_norm), check_loss(op, loss)
    static = (network, loss, _check.one_of(op, "curvature", curvature, CURVATURES))
    y = targets if weights is None else [targets, weights]
    of_params = CORES[loss] if residual_norm is False else of_network(network, params, CORES[loss])
    of_call = of_params if weights is None else weighted(of_params)
    found = direct(op, (params, vectors, inputs, y), static, of_call)
    if found is not None:
        refuse_labels(op, loss, params if residual_norm is False else layers_of(network, params), targets=targets)
        return in_order(found, params)
    mlp = check_mlp(op, params, network, inputs=inputs)
    v = check_like_params(op, "vectors", vectors, mlp, params)
    folded = mlp.targets(op, "targets", targets, inputs.shape[-2], loss, weights)
    products = call(op, (mlp.params, v, mlp.examples["inputs"], folded), static, of_call)
    return like_params(products, mlp)

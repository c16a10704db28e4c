from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..types import Activation, Loss
from ._mlp import check_loss, check_mlp, check_network, layers_of, of_network
from ._network import Param, in_order, like_params, refuse_labels, weighted
from .mlp_loss import CORES


def mlp_grad(
    params: Sequence[Param],
    inputs: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    activation: Activation = "relu",
    residual_norm: bool = False,
    loss: Loss = "cross_entropy",
) -> tuple[Tensor, list[Param]]:
    r"""(L_t, dL_t/dparams): each task's loss, as `mlp_loss` defines it, and its own gradient.

    Shapes: as in `mlp_loss` -> loss `[...]` and a list like params with `[..., out, in]`, `[..., out]`, or None where the bias
    is None. Parameters that the tasks share get one gradient for each task too: nothing is summed over tasks.

    Differentiable in params, inputs, weights and (mse) targets, to any order. The derivative of the gradient is a Hessian-vector
    product. Errors and dtypes as in `mlp_loss`.

    Kernels: native CPU and CUDA C++ (up to 8 layers). Source: the inner gradient of Finn et al. 2017, arXiv:1703.03400.

    ```python
    import torch
    import fastmeta

    params = [torch.randn(5, 64), torch.zeros(5)]  # shared by 32 tasks
    x, y = torch.randn(32, 25, 64), torch.randint(0, 5, (32, 25))
    losses, (weight, bias) = fastmeta.mlp_grad(params, x, y)
    # [32], [32, 5, 64], [32, 5]
    ```
    """
    op = "mlp_grad"
    network, loss = check_network(op, activation, residual_norm), check_loss(op, loss)
    y = targets if weights is None else [targets, weights]
    of_params = CORES[loss] if residual_norm is False else of_network(network, params, CORES[loss])
    of_call = of_params if weights is None else weighted(of_params)
    found = direct(op, (params, inputs, y), (network, loss), of_call)
    if found is not None:
        refuse_labels(op, loss, params if residual_norm is False else layers_of(network, params), targets=targets)
        return found[0], in_order(found[1:], params)
    mlp = check_mlp(op, params, network, inputs=inputs)
    folded = mlp.targets(op, "targets", targets, inputs.shape[-2], loss, weights)
    value, *grads = call(op, (mlp.params, mlp.examples["inputs"], folded), (network, loss), of_call)
    return _check.unfold(value, mlp.lead), like_params(grads, mlp)

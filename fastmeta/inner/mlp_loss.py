from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..types import Activation, Loss
from ._mlp import PARAM_CORES, check_loss, check_mlp, check_network, layers_of, of_network
from ._network import refuse_labels, weighted

CORES = {"cross_entropy": (PARAM_CORES, 2, 1), "mse": (PARAM_CORES, 2, 2)}


def mlp_loss(
    params: Sequence[Tensor | None],
    inputs: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    activation: Activation = "relu",
    residual_norm: bool = False,
    loss: Loss = "cross_entropy",
) -> Tensor:
    r"""L_t = sum_i w_ti l_ti / n_t: l_ti the loss of example i of task t in mlp_forward(params, inputs), n_t the number of examples
    that are not ignored, w_ti their weights, 1 without `weights`.

    Shapes: params, inputs, `activation` and `residual_norm` as in `mlp_forward`; targets `[..., n]` int64 for "cross_entropy",
    `[..., n, out]` for "mse" -> `[...]`, one loss a task. The target -100 leaves an example out, for ragged tasks. A task without
    examples has the loss 0.
    `weights`: `[..., n]`, or `[n]` for all tasks; of any sign. What they sum to does not matter: a weight of 0 takes away an
    example's loss, not its place in the mean. The weight of an example that is left out counts nothing, even where it is NaN, and
    has the gradient 0.

    Differentiable in params, inputs, weights and (mse) targets, to any order. Where a gradient is needed, forward computes it while
    everything is in cache, and backward only scales it. dtypes as in `mlp_forward`.

    Errors: as in `mlp_forward`; ValueError for a target out of range. On CUDA targets are not looked at, because that would
    wait for the device: there a target out of range makes its task's loss NaN.

    Kernels: native CPU and CUDA C++ (up to 8 layers). Source: the inner objective of Finn et al. 2017, arXiv:1703.03400.

    ```python
    import torch
    import fastmeta

    weight = torch.randn(5, 64, requires_grad=True)
    params = [weight, torch.zeros(5)]  # a linear classifier of 32 tasks
    x, y = torch.randn(32, 25, 64), torch.randint(0, 5, (32, 25))
    losses = fastmeta.mlp_loss(params, x, y)  # [32]
    losses.mean().backward()
    ```
    """
    op = "mlp_loss"
    network, loss = check_network(op, activation, residual_norm), check_loss(op, loss)
    y = targets if weights is None else [targets, weights]
    of_params = CORES[loss] if residual_norm is False else of_network(network, params, CORES[loss])
    of_call = of_params if weights is None else weighted(of_params)
    found = direct(op, (params, inputs, y), (network, loss), of_call)
    if found is not None:
        refuse_labels(op, loss, params if residual_norm is False else layers_of(network, params), targets=targets)
        return found[0]
    mlp = check_mlp(op, params, network, inputs=inputs)
    folded = mlp.targets(op, "targets", targets, inputs.shape[-2], loss, weights)
    (out,) = call(op, (mlp.params, mlp.examples["inputs"], folded), (network, loss), of_call)
    return _check.unfold(out, mlp.lead)

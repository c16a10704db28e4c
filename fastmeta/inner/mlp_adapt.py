from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..loops.optimisers import InnerOptimiser
from ..reference.mlp_adapt import Inner
from ..types import Activation, Loss, Rate
from ._mlp import EXAMPLE_RANK, PARAM_CORES, check_loss, check_mlp, check_network, layers_of, of_network
from ._network import Param, check_rates, check_steps, in_order, like_params, listed, refuse_labels, weighted
from ._steps import by_tasks, given_steps, lead_of, of_a_step

CORES = {
    "cross_entropy": (PARAM_CORES, (None,), 2, 1),
    "mse": (PARAM_CORES, (None,), 2, 2),
}


def mlp_adapt(
    params: Sequence[Param],
    lr: Rate | None,
    inputs: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    steps: int,
    activation: Activation = "relu",
    residual_norm: bool = False,
    loss: Loss = "cross_entropy",
    first_order: bool = False,
    batch_per_step: bool = False,
    optimiser: InnerOptimiser | None = None,
) -> list[Param]:
    r"""theta_{k+1} = theta_k - alpha_k * dL(theta_k)/dtheta for k = 0 .. steps - 1, each task for itself.

    Shapes: params, inputs, targets, weights as in `mlp_loss` -> the adapted parameters, a list like params with the batch dimensions.
    `lr`: the rates, of any sign. One rate for all parameters is a number, a 0-dim tensor or `[steps]`. A sequence like params
    gives each its own. Its entries are all of one kind: numbers or 0-dim tensors, `[steps]`, the parameter's shape (Meta-SGD:
    `[out, in]`, `[out]`), or `[steps, *shape]`.
    `steps`: at most a million. `first_order`: leave out the second derivatives, v_k = v_{k+1} below (FOMAML).
    `batch_per_step`: inputs `[K, ..., S, in]`, targets and weights with the K steps in front likewise; step k takes batch k.
    `optimiser`: a `fastmeta.SGD` or `fastmeta.Adam` in the place of `lr`, which must then be None. Its rates are of the kinds that
    `lr` has. Its other numbers are Python's; `fastmeta.unroll` learns those. Its state begins at 0 in every task and has its
    part in the backward. On CUDA the reference runs where either is given.

    Backward is the chain of Hessian-vector products v_k = v_{k+1} - H_k (alpha_k * v_{k+1}). It keeps no graph, at most the
    parameters before each step. Differentiable in params, lr, inputs, weights and (mse) targets, to any order.

    Errors: as in `mlp_loss`; ValueError where a rate is NaN or infinite. Tensors of rates on CUDA and under transforms are not
    looked at. dtypes as in `mlp_loss`.

    Kernels: native CPU and CUDA C++ (up to 8 layers). Sources: Finn et al. 2017, arXiv:1703.03400; Li et al. 2017,
    arXiv:1707.09835.

    ```python
    import torch
    import fastmeta

    params = [torch.randn(5, 64), torch.zeros(5)]  # shared by 32 tasks
    params = [p.requires_grad_() for p in params]
    x, y = torch.randn(32, 25, 64), torch.randint(0, 5, (32, 25))
    adapted = fastmeta.mlp_adapt(params, 0.1, x, y, steps=5)
    # [32, 5, 64], [32, 5]
    logits = fastmeta.mlp_forward(adapted, torch.randn(32, 75, 64))
    ```
    """
    op = "mlp_adapt"
    network, loss = check_network(op, activation, residual_norm), check_loss(op, loss)
    steps, first_order = check_steps(op, steps), _check.flag(op, "first_order", first_order)
    inner: Inner = None
    if optimiser is not None or batch_per_step is not False:
        lr, inner = given_steps(op, lr, batch_per_step, optimiser)
    static = (steps, network, loss, first_order, inner)
    of_params = CORES[loss] if residual_norm is False else of_network(network, params, CORES[loss])
    of_call, x, y, w = of_params if weights is None else weighted(of_params), inputs, targets, weights
    if inner is not None:
        of_call, x, y, w = by_tasks(inner, of_call, inputs, targets, weights)
    found = direct(op, (params, listed(lr, params), x, y if w is None else [y, w]), static, of_call)
    if found is not None:
        refuse_labels(op, loss, params if residual_norm is False else layers_of(network, params), targets=targets)
        return in_order(found, params)
    lead = lead_of(inner, steps)
    mlp = check_mlp(op, params, network, **of_a_step(op, "inputs", inputs, EXAMPLE_RANK, lead))
    rates = check_rates(op, lr, params, steps, mlp.ranks)
    folded = mlp.targets(op, "targets", targets, inputs.shape[-2], loss, weights, steps=lead)
    args = (mlp.params, rates, mlp.support("inputs", inputs, EXAMPLE_RANK, lead), folded)
    return like_params(call(op, args, static, of_call), mlp)

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..loops.optimisers import InnerOptimiser
from ..reference.mlp_adapt import Inner
from ..types import Activation, Loss, Rate
from ._mlp import EXAMPLE_RANK, PARAM_CORES, check_loss, check_mlp, check_network, layers_of, of_network
from ._network import check_rates, check_steps, first_with_graph, listed, refuse_labels, weighted
from ._steps import by_tasks, given_steps, lead_of, of_a_step

CORES = {
    "cross_entropy": (PARAM_CORES, (None,), 2, 1, 2, 1),
    "mse": (PARAM_CORES, (None,), 2, 2, 2, 2),
}


def mlp_meta_loss(
    params: Sequence[Tensor | None],
    lr: Rate | None,
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    *,
    weights: Tensor | None = None,
    query_weights: Tensor | None = None,
    steps: int,
    activation: Activation = "relu",
    residual_norm: bool = False,
    loss: Loss = "cross_entropy",
    first_order: bool = False,
    batch_per_step: bool = False,
    optimiser: InnerOptimiser | None = None,
) -> Tensor:
    r"""L_query(theta_K), theta_K = mlp_adapt(params, lr, support_x, support_y): adaptation and query loss in one call.

    Shapes: params, lr as in `mlp_adapt`; support_x `[..., S, in]`, query_x `[..., Q, in]`, targets as in `mlp_loss` ->
    `[...]`, one query loss a task. `weights` are those of the support examples, `[..., S]`, `query_weights` of the query examples,
    `[..., Q]`; both as in `mlp_loss`. `batch_per_step`, of the support alone, and `optimiser` as in `mlp_adapt`.

    Differentiable in params, lr, all inputs, weights and (mse) targets, to any order. Where a gradient is needed, forward
    computes each task's whole meta-gradient in the same call, and backward only scales it. Errors and dtypes as in `mlp_adapt`.

    Kernels: native CPU and CUDA C++ (up to 8 layers). Sources: Finn et al. 2017, arXiv:1703.03400; Li et al. 2017,
    arXiv:1707.09835.

    ```python
    import torch
    import fastmeta

    params = [torch.randn(5, 64), torch.zeros(5)]
    params = [p.requires_grad_() for p in params]
    rates = [torch.full_like(p, 0.1).requires_grad_() for p in params]
    support = torch.randn(32, 25, 64), torch.randint(0, 5, (32, 25))
    query = torch.randn(32, 75, 64), torch.randint(0, 5, (32, 75))
    losses = fastmeta.mlp_meta_loss(params, rates, *support, *query, steps=5)
    losses.mean().backward()  # Meta-SGD: the rates have gradients too
    ```
    """
    return mlp_meta_loss_and_outputs(
        params, lr, support_x, support_y, query_x, query_y, weights=weights, query_weights=query_weights, steps=steps,
        activation=activation, residual_norm=residual_norm, loss=loss, first_order=first_order,
        batch_per_step=batch_per_step, optimiser=optimiser, return_outputs=False,
    )[0]  # fmt: skip


def mlp_meta_loss_and_outputs(
    params: Sequence[Tensor | None],
    lr: Rate | None,
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    *,
    weights: Tensor | None = None,
    query_weights: Tensor | None = None,
    steps: int,
    activation: Activation = "relu",
    residual_norm: bool = False,
    loss: Loss = "cross_entropy",
    first_order: bool = False,
    batch_per_step: bool = False,
    optimiser: InnerOptimiser | None = None,
    return_outputs: bool,
) -> tuple[Tensor, ...]:
    """`mlp_meta_loss`, and the query outputs of the same pass `[..., Q, out]`, without a graph, where they are asked for."""
    op = "mlp_meta_loss"
    network, loss = check_network(op, activation, residual_norm), check_loss(op, loss)
    steps, first_order = check_steps(op, steps), _check.flag(op, "first_order", first_order)
    inner: Inner = None
    if optimiser is not None or batch_per_step is not False:
        lr, inner = given_steps(op, lr, batch_per_step, optimiser)
    static = (steps, network, loss, first_order, return_outputs, inner)
    of_params = CORES[loss] if residual_norm is False else of_network(network, params, CORES[loss])
    of_call = of_params if weights is None else weighted(of_params, -3)
    of_call = of_call if query_weights is None else weighted(of_call)
    query = query_y if query_weights is None else [query_y, query_weights]
    x, y, w = support_x, support_y, weights
    if inner is not None:
        of_call, x, y, w = by_tasks(inner, of_call, support_x, support_y, weights)
    found = direct(op, (params, listed(lr, params), x, y if w is None else [y, w], query_x, query), static, of_call)
    if found is not None:
        refuse_labels(
            op,
            loss,
            params if residual_norm is False else layers_of(network, params),
            support_y=support_y,
            query_y=query_y,
        )
        return first_with_graph(found)
    lead = lead_of(inner, steps)
    mlp = check_mlp(op, params, network, **of_a_step(op, "support_x", support_x, EXAMPLE_RANK, lead), query_x=query_x)
    rates = check_rates(op, lr, params, steps, mlp.ranks)
    args = (
        mlp.params,
        rates,
        mlp.support("support_x", support_x, EXAMPLE_RANK, lead),
        mlp.targets(op, "support_y", support_y, support_x.shape[-2], loss, weights, steps=lead),
        mlp.examples["query_x"],
        mlp.targets(op, "query_y", query_y, query_x.shape[-2], loss, query_weights, "query_weights"),
    )
    return first_with_graph([_check.unfold(y, mlp.lead) for y in call(op, args, static, of_call)])

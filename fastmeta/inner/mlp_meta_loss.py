from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..types import Activation, Loss, Rate
from ._mlp import PARAM_CORES, check_loss, check_mlp
from ._network import check_rates, check_steps, first_with_graph, listed, refuse_labels, weighted

CORES = {
    "cross_entropy": (PARAM_CORES, (None,), 2, 1, 2, 1),
    "mse": (PARAM_CORES, (None,), 2, 2, 2, 2),
}


def mlp_meta_loss(
    params: Sequence[Tensor | None],
    lr: Rate,
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    *,
    weights: Tensor | None = None,
    query_weights: Tensor | None = None,
    steps: int,
    activation: Activation = "relu",
    loss: Loss = "cross_entropy",
    first_order: bool = False,
) -> Tensor:
    r"""L_query(theta_K), theta_K = mlp_adapt(params, lr, support_x, support_y): adaptation and query loss in one call.

    Shapes: params, lr as in `mlp_adapt`; support_x `[..., S, in]`, query_x `[..., Q, in]`, targets as in `mlp_loss` ->
    `[...]`, one query loss a task. `weights` are those of the support examples, `[..., S]`, `query_weights` of the query examples,
    `[..., Q]`; both as in `mlp_loss`.

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
        activation=activation, loss=loss, first_order=first_order, return_outputs=False,
    )[0]  # fmt: skip


def mlp_meta_loss_and_outputs(
    params: Sequence[Tensor | None],
    lr: Rate,
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    *,
    weights: Tensor | None = None,
    query_weights: Tensor | None = None,
    steps: int,
    activation: Activation = "relu",
    loss: Loss = "cross_entropy",
    first_order: bool = False,
    return_outputs: bool,
) -> tuple[Tensor, ...]:
    """`mlp_meta_loss`, and the query outputs of the same pass `[..., Q, out]`, without a graph, where they are asked for."""
    op = "mlp_meta_loss"
    activation, loss = check_loss(op, activation, loss)
    steps, first_order = check_steps(op, steps), _check.flag(op, "first_order", first_order)
    static = (steps, activation, loss, first_order, return_outputs)
    of_call = CORES[loss]
    support = support_y if weights is None else [support_y, weights]
    query = query_y if query_weights is None else [query_y, query_weights]
    of_call = of_call if weights is None else weighted(of_call, -3)
    of_call = of_call if query_weights is None else weighted(of_call)
    found = direct(op, (params, listed(lr, params), support_x, support, query_x, query), static, of_call)
    if found is not None:
        refuse_labels(op, loss, params, support_y=support_y, query_y=query_y)
        return first_with_graph(found)
    mlp = check_mlp(op, params, support_x=support_x, query_x=query_x)
    rates = check_rates(op, lr, params, steps, mlp.ranks)
    args = (
        mlp.params,
        rates,
        mlp.examples["support_x"],
        mlp.targets(op, "support_y", support_y, support_x.shape[-2], loss, weights),
        mlp.examples["query_x"],
        mlp.targets(op, "query_y", query_y, query_x.shape[-2], loss, query_weights, "query_weights"),
    )
    return first_with_graph([_check.unfold(y, mlp.lead) for y in call(op, args, static, of_call)])

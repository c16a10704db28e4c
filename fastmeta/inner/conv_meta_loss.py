from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..loops.optimisers import InnerOptimiser
from ..reference.mlp_adapt import Inner
from ..types import ConvBlock, Loss, Rate
from ._conv import EXAMPLE_RANK, check_blocks, check_conv, check_loss, cores
from ._network import check_rates, check_steps, listed, refuse_labels, weighted
from ._steps import by_tasks, given_steps, lead_of, of_a_step


def conv_meta_loss(
    params: Sequence[Tensor | None],
    lr: Rate | None,
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    *,
    weights: Tensor | None = None,
    query_weights: Tensor | None = None,
    blocks: Sequence[ConvBlock],
    steps: int,
    loss: Loss = "cross_entropy",
    first_order: bool = False,
    batch_per_step: bool = False,
    optimiser: InnerOptimiser | None = None,
) -> Tensor:
    r"""L_query(theta_K), theta_K = conv_adapt(params, lr, support_x, support_y): adaptation and query loss in one call.

    Shapes: params, lr as in `conv_adapt`; support_x `[..., S, channels, height, width]`, query_x with Q for S, targets as in
    `conv_loss` -> `[...]`, one query loss a task. `weights`: of the support, `query_weights`: of the query; as in `mlp_loss`.
    `batch_per_step`, of the support alone, and `optimiser` as in `mlp_adapt`.

    Where a gradient will be asked for, forward computes each task's whole meta-gradient in the same call and backward only
    scales it. Differentiable in params, lr, all inputs, weights and (mse) targets, to any order. Errors and dtypes as in
    `conv_loss`.

    Kernels: native CPU C++, CUDA C++, as `conv_forward`. Sources: Finn et al. 2017, arXiv:1703.03400; Li et al. 2017, arXiv:1707.09835.

    ```python
    import torch
    import fastmeta

    blocks = [fastmeta.ConvBlock()]
    params = [torch.randn(8, 1, 3, 3), None, torch.ones(8), torch.zeros(8)]
    params += [torch.randn(5, 8 * 14 * 14), torch.zeros(5)]
    params = [p if p is None else p.requires_grad_() for p in params]
    support = torch.randn(4, 5, 1, 28, 28), torch.randint(5, (4, 5))
    query = torch.randn(4, 75, 1, 28, 28), torch.randint(5, (4, 75))
    losses = fastmeta.conv_meta_loss(
        params, 0.1, *support, *query, blocks=blocks, steps=5
    )  # [4]
    losses.mean().backward()
    ```
    """
    op = "conv_meta_loss"
    of_blocks, loss = check_blocks(op, blocks), check_loss(op, loss)
    steps, first_order = check_steps(op, steps), _check.flag(op, "first_order", first_order)
    inner: Inner = None
    if optimiser is not None or batch_per_step is not False:
        lr, inner = given_steps(op, lr, batch_per_step, optimiser)
    static, of_call = (
        (steps, of_blocks, loss, first_order, False, inner),
        cores(len(of_blocks), loss, 2, before="rates"),
    )
    query = query_y if query_weights is None else [query_y, query_weights]
    of_call = of_call if weights is None else weighted(of_call, -3)
    of_call = of_call if query_weights is None else weighted(of_call)
    x, y, w = support_x, support_y, weights
    if inner is not None:
        of_call, x, y, w = by_tasks(inner, of_call, support_x, support_y, weights)
    found = direct(op, (params, listed(lr, params), x, y if w is None else [y, w], query_x, query), static, of_call)
    if found is not None:
        refuse_labels(op, loss, params, support_y=support_y, query_y=query_y)
        return found[0]
    lead = lead_of(inner, steps)
    of_support = of_a_step(op, "support_x", support_x, EXAMPLE_RANK, lead)
    net = check_conv(op, params, of_blocks, **of_support, query_x=query_x)
    args = (
        net.params,
        check_rates(op, lr, params, steps, net.ranks),
        net.support("support_x", support_x, EXAMPLE_RANK, lead),
        net.targets(op, "support_y", support_y, support_x.shape[-4], loss, weights, steps=lead),
        net.examples["query_x"],
        net.targets(op, "query_y", query_y, query_x.shape[-4], loss, query_weights, "query_weights"),
    )
    (out,) = call(op, args, static, of_call)
    return _check.unfold(out, net.lead)

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..loops.optimisers import InnerOptimiser
from ..reference.mlp_adapt import Inner
from ..types import ConvBlock, Loss, Rate
from ._conv import EXAMPLE_RANK, check_blocks, check_conv, check_loss, cores
from ._network import Param, check_rates, check_steps, in_order, like_params, listed, refuse_labels, weighted
from ._steps import by_tasks, given_steps, lead_of, of_a_step


def conv_adapt(
    params: Sequence[Param],
    lr: Rate | None,
    inputs: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    blocks: Sequence[ConvBlock],
    steps: int,
    loss: Loss = "cross_entropy",
    first_order: bool = False,
    batch_per_step: bool = False,
    optimiser: InnerOptimiser | None = None,
) -> list[Param]:
    r"""theta_{k+1} = theta_k - alpha_k * dL(theta_k)/dtheta for k = 0 .. steps - 1, each task for itself.

    Shapes: params, inputs, targets, weights as in `conv_loss` -> the adapted parameters, a list like params with the batch dimensions.
    `lr`, of any sign: a number, a 0-dim tensor or `[steps]` for all parameters; or a sequence like params, all of one kind:
    numbers or 0-dim tensors, `[steps]`, the parameter's shape (Meta-SGD), or `[steps, *shape]`. ValueError where a rate is NaN or
    infinite; on CUDA and under transforms tensors are not looked at. `steps`: at most a million. `batch_per_step`, `optimiser`: as in
    `mlp_adapt`.

    Backward is the chain of Hessian-vector products v_k = v_{k+1} - H_k (alpha_k * v_{k+1}); no graph is kept, at most the
    parameters before each step. `first_order` takes v_k = v_{k+1} instead (FOMAML). Differentiable in params, lr, inputs,
    weights and (mse) targets, to any order. Errors and dtypes as in `conv_loss`.

    Kernels: native CPU C++, CUDA C++, as `conv_forward`. Sources: Finn et al. 2017, arXiv:1703.03400; Li et al. 2017, arXiv:1707.09835.

    ```python
    import torch
    import fastmeta

    blocks = [fastmeta.ConvBlock()]
    params = [torch.randn(8, 1, 3, 3), None, torch.ones(8), torch.zeros(8)]
    params += [torch.randn(5, 8 * 14 * 14), torch.zeros(5)]
    images, labels = torch.randn(4, 25, 1, 28, 28), torch.randint(5, (4, 25))
    adapted = fastmeta.conv_adapt(
        params, 0.1, images, labels, blocks=blocks, steps=5
    )  # [4, 8, 1, 3, 3], None, [4, 8], ...
    query = torch.randn(4, 75, 1, 28, 28)
    outputs = fastmeta.conv_forward(adapted, query, blocks=blocks)
    ```
    """
    op = "conv_adapt"
    of_blocks, loss = check_blocks(op, blocks), check_loss(op, loss)
    steps, first_order = check_steps(op, steps), _check.flag(op, "first_order", first_order)
    inner: Inner = None
    if optimiser is not None or batch_per_step is not False:
        lr, inner = given_steps(op, lr, batch_per_step, optimiser)
    static, of_call = (steps, of_blocks, loss, first_order, inner), cores(len(of_blocks), loss, before="rates")
    of_call, x, y, w = of_call if weights is None else weighted(of_call), inputs, targets, weights
    if inner is not None:
        of_call, x, y, w = by_tasks(inner, of_call, inputs, targets, weights)
    found = direct(op, (params, listed(lr, params), x, y if w is None else [y, w]), static, of_call)
    if found is not None:
        refuse_labels(op, loss, params, targets=targets)
        return in_order(found, params)
    lead = lead_of(inner, steps)
    net = check_conv(op, params, of_blocks, **of_a_step(op, "inputs", inputs, EXAMPLE_RANK, lead))
    rates = check_rates(op, lr, params, steps, net.ranks)
    folded = net.targets(op, "targets", targets, inputs.shape[-4], loss, weights, steps=lead)
    args = (net.params, rates, net.support("inputs", inputs, EXAMPLE_RANK, lead), folded)
    return like_params(call(op, args, static, of_call), net)

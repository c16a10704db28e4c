from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..types import ConvBlock, Loss
from ._conv import check_blocks, check_conv, check_loss, cores
from ._network import Param, in_order, like_params, refuse_labels, weighted


def conv_grad(
    params: Sequence[Param],
    inputs: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    blocks: Sequence[ConvBlock],
    loss: Loss = "cross_entropy",
) -> tuple[Tensor, list[Param]]:
    r"""(L_t, dL_t/dparams): each task's loss, as `conv_loss` defines it, and its own gradient.

    Shapes: as in `conv_loss` -> loss `[...]` and a list like params, each with the batch dimensions, None where params has None.
    Parameters shared by the tasks get one gradient for each task too: nothing is summed over tasks.

    Differentiable in params, inputs, weights and (mse) targets, to any order; the derivative of the gradient is a Hessian-vector
    product. Errors and dtypes as in `conv_loss`.

    Kernels: native CPU C++, CUDA C++, as `conv_forward`. Source: the inner gradient of Finn et al. 2017, arXiv:1703.03400.

    ```python
    import torch
    import fastmeta

    blocks = [fastmeta.ConvBlock()]
    params = [torch.randn(8, 1, 3, 3), None, torch.ones(8), torch.zeros(8)]
    params += [torch.randn(5, 8 * 14 * 14), torch.zeros(5)]
    images, labels = torch.randn(4, 25, 1, 28, 28), torch.randint(5, (4, 25))
    losses, grads = fastmeta.conv_grad(params, images, labels, blocks=blocks)
    # [4]; [4, 8, 1, 3, 3], None, [4, 8], ...
    ```
    """
    op = "conv_grad"
    of_blocks, loss = check_blocks(op, blocks), check_loss(op, loss)
    static, of_call = (of_blocks, loss), cores(len(of_blocks), loss)
    y = targets if weights is None else [targets, weights]
    of_call = of_call if weights is None else weighted(of_call)
    found = direct(op, (params, inputs, y), static, of_call)
    if found is not None:
        refuse_labels(op, loss, params, targets=targets)
        return found[0], in_order(found[1:], params)
    net = check_conv(op, params, of_blocks, inputs=inputs)
    folded = net.targets(op, "targets", targets, inputs.shape[-4], loss, weights)
    value, *grads = call(op, (net.params, net.examples["inputs"], folded), static, of_call)
    return _check.unfold(value, net.lead), like_params(grads, net)

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..types import ConvBlock, Loss
from ._conv import check_blocks, check_conv, check_loss, cores
from ._network import refuse_labels, weighted


def conv_loss(
    params: Sequence[Tensor | None],
    inputs: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    blocks: Sequence[ConvBlock],
    loss: Loss = "cross_entropy",
) -> Tensor:
    r"""L_t = sum_i w_ti l_ti / n_t: l_ti the loss of example i of task t in conv_forward(params, inputs), n_t the number of examples
    that are not ignored, w_ti their weights, 1 without `weights`.

    Shapes: params and inputs as in `conv_forward`; targets `[..., n]` int64 for "cross_entropy" (-100: the example is left out,
    but batch norm still sees it), `[..., n, outputs]` for "mse" -> `[...]`, one loss a task; 0 where no example counts.
    `weights` as in `mlp_loss`; batch norm sees all examples, whatever their weights.

    Where a gradient will be asked for, forward computes it while everything is in cache and backward only scales.
    Differentiable in params, inputs, weights and (mse) targets, to any order. ValueError for a target out of range; on CUDA, where
    looking would have to wait for the device, its task's loss is NaN. Errors and dtypes as in `conv_forward`.

    Kernels: native CPU C++, CUDA C++, as `conv_forward`. Source: the inner objective of Finn et al. 2017, arXiv:1703.03400.

    ```python
    import torch
    import fastmeta

    blocks = [fastmeta.ConvBlock(norm=4)]  # group norm
    params = [torch.randn(8, 1, 3, 3), torch.zeros(8)]
    params += [torch.ones(8), torch.zeros(8)]  # gamma, beta
    params += [torch.randn(5, 8 * 14 * 14), None]
    params = [p if p is None else p.requires_grad_() for p in params]
    images, labels = torch.randn(4, 25, 1, 28, 28), torch.randint(5, (4, 25))
    losses = fastmeta.conv_loss(params, images, labels, blocks=blocks)  # [4]
    losses.mean().backward()
    ```
    """
    op = "conv_loss"
    of_blocks, loss = check_blocks(op, blocks), check_loss(op, loss)
    static, of_call = (of_blocks, loss), cores(len(of_blocks), loss)
    y = targets if weights is None else [targets, weights]
    of_call = of_call if weights is None else weighted(of_call)
    found = direct(op, (params, inputs, y), static, of_call)
    if found is not None:
        refuse_labels(op, loss, params, targets=targets)
        return found[0]
    net = check_conv(op, params, of_blocks, inputs=inputs)
    folded = net.targets(op, "targets", targets, inputs.shape[-4], loss, weights)
    (out,) = call(op, (net.params, net.examples["inputs"], folded), static, of_call)
    return _check.unfold(out, net.lead)

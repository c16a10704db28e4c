from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..types import ConvBlock, Curvature, Loss
from ._conv import check_blocks, check_conv, check_loss, cores
from ._network import Param, check_like_params, in_order, like_params, refuse_labels, weighted
from .mlp_hvp import CURVATURES


def conv_hvp(
    params: Sequence[Param],
    vectors: Sequence[Tensor | None],
    inputs: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    blocks: Sequence[ConvBlock],
    loss: Loss = "cross_entropy",
    curvature: Curvature = "hessian",
) -> list[Param]:
    r"""H_t v_t, H_t the Hessian of task t's loss (as `conv_loss` defines it) with respect to its parameters, or its Gauss-Newton
    part; both as `mlp_hvp` defines them.

    curvature="hessian": H = J' H_out J + sum_o (dL/dz_o) d2z_o/dparams2, with z the outputs, J = dz/dparams and H_out = d2L/dz2.
    curvature="ggn": J' H_out J v, the generalised Gauss-Newton product; symmetric, positive semi-definite where no weight is
    negative. The targets only say which examples count: mse's may be anything, with gradient 0.

    Shapes: params, inputs, targets, weights as in `conv_loss`; vectors like params, each with the batch dimensions or without
    (then one vector for all tasks) -> a list like params with the batch dimensions. Nothing is summed over tasks.

    One extra forward and backward pass with tangents, through the statistics of the norms too, for "ggn" one backward pass in all;
    no matrix is formed. Differentiable in params, vectors, inputs, weights and (mse) targets, to any order (the derivative comes
    from the reference). Errors and dtypes as in `conv_loss`; ValueError for another curvature.

    Kernels: native CPU C++, CUDA C++, as `conv_forward`, forward. Source: Pearlmutter 1994, Neural Computation 6(1); "ggn":
    Schraudolph 2002, Neural Computation 14(7), and Martens 2010, ICML.

    ```python
    import torch
    import fastmeta

    blocks = [fastmeta.ConvBlock()]
    params = [torch.randn(8, 1, 3, 3), None, torch.ones(8), torch.zeros(8)]
    params += [torch.randn(5, 8 * 14 * 14), torch.zeros(5)]
    vectors = [p if p is None else torch.randn_like(p) for p in params]
    images, labels = torch.randn(4, 25, 1, 28, 28), torch.randint(5, (4, 25))
    products = fastmeta.conv_hvp(
        params, vectors, images, labels, blocks=blocks
    )  # [4, 8, 1, 3, 3], None, [4, 8], ...
    ```
    """
    op = "conv_hvp"
    of_blocks, loss = check_blocks(op, blocks), check_loss(op, loss)
    static = (of_blocks, loss, _check.one_of(op, "curvature", curvature, CURVATURES))
    of_call = cores(len(of_blocks), loss, before="vectors")
    y = targets if weights is None else [targets, weights]
    of_call = of_call if weights is None else weighted(of_call)
    found = direct(op, (params, vectors, inputs, y), static, of_call)
    if found is not None:
        refuse_labels(op, loss, params, targets=targets)
        return in_order(found, params)
    net = check_conv(op, params, of_blocks, inputs=inputs)
    v = check_like_params(op, "vectors", vectors, net, params)
    folded = net.targets(op, "targets", targets, inputs.shape[-4], loss, weights)
    return like_params(call(op, (net.params, v, net.examples["inputs"], folded), static, of_call), net)

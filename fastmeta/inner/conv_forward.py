from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..types import ConvBlock
from ._conv import check_blocks, check_conv, cores, encodes
from ._network import first_with_graph


def conv_forward(params: Sequence[Tensor | None], inputs: Tensor, *, blocks: Sequence[ConvBlock]) -> Tensor:
    r"""x_l = pool(relu(norm(x_{l-1} * W_l + b_l))) for each of `blocks`, then x_L W' + b on all that the last one leaves: a
    convolutional network, such as Conv4, with weights of its own for each task. Without W and b, both None, it is an encoder: its
    outputs are the features x_L, and all threads work on one batch. Its blocks may be those of a ResNet-12: leaky ReLU, 1 x 1 kernels,
    and with skip = k: x_l = pool(relu(norm(x_{l-1-k} * W_l + b_l) + x_{l-1})).

    norm(z) = gamma (z - mean) / sqrt(var + eps) + beta, with mean and (biased) variance of the task's own batch or of groups of
    channels; each part of a block but the convolution may be left out (`ConvBlock`).

    Shapes: params `[weight, bias, gamma, beta]` of each block, weight `[..., out, in, 3, 3]` (or 1, 1), the others `[..., out]` or None,
    then `[weight, bias]` of the linear layer, `[..., outputs, features]`, `[..., outputs]` or None; features are the last block's
    channels, rows and columns, in this order. Each has the batch dimensions of the tasks or is shared without them. inputs
    `[..., n, channels, height, width]` -> `[..., n, outputs]`, or `[..., n, features]`.

    Differentiable in params and inputs, to any order. dtype: float32, float64, float16 or bfloat16 in and out, sums in
    float32 or better; float32 under autocast.

    Errors: TypeError for dtypes and what is not a tensor, ValueError for shapes, devices and values, and for a batch norm over
    one value.

    Kernels: native CPU C++, CUDA C++ but for encoders (up to 16 blocks, padding up to 2, pool up to 2). Sources: Vinyals et al. 2016,
    arXiv:1606.04080 (the network); batched weights as in Finn et al. 2017, arXiv:1703.03400.

    ```python
    import torch
    import fastmeta

    blocks = [fastmeta.ConvBlock()] * 2  # 3 x 3, batch norm, ReLU, max-pool
    params = [torch.randn(8, 1, 3, 3), None, torch.ones(8), torch.zeros(8)]
    params += [torch.randn(8, 8, 3, 3), None, torch.ones(8), torch.zeros(8)]
    params += [torch.randn(5, 8 * 7 * 7), torch.zeros(5)]
    images = torch.randn(4, 25, 1, 28, 28)
    outputs = fastmeta.conv_forward(params, images, blocks=blocks)  # [4, 25, 5]
    ```
    """
    return conv_forward_and_statistics(params, inputs, blocks=blocks)[0]


def conv_forward_and_statistics(
    params: Sequence[Tensor | None], inputs: Tensor, *, blocks: Sequence[ConvBlock]
) -> tuple[Tensor, ...]:
    """`conv_forward`; of an encoder with batch norms also the mean and the biased variance of each channel of theirs,
    `[..., channels of all]`, without a graph."""
    op = "conv_forward"
    of_blocks = check_blocks(op, blocks, encodes(op, params))
    of_call = cores(len(of_blocks), None)
    found = direct(op, (params, inputs), (of_blocks,), of_call)
    if found is None:
        net = check_conv(op, params, of_blocks, inputs=inputs)
        found = tuple(
            _check.unfold(y, net.lead) for y in call(op, (net.params, net.examples["inputs"]), (of_blocks,), of_call)
        )
    return first_with_graph(found)

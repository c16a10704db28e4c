from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..types import Activation
from ._mlp import ACTIVATIONS, PARAM_CORES, check_mlp

CORES = (PARAM_CORES, 2)


def mlp_forward(params: Sequence[Tensor | None], inputs: Tensor, *, activation: Activation = "relu") -> Tensor:
    r"""x_l = activation(x_{l-1} W_l' + b_l), the last layer without activation: an MLP with weights of its own for each task.

    Shapes: params `[W_1, b_1, W_2, b_2, ...]`, W `[..., out, in]`, b `[..., out]` or None; inputs `[..., n, in]` ->
    `[..., n, out]`. A parameter has the batch dimensions of the tasks, or lacks them and is shared.
    `activation`: "relu", "tanh", "gelu" (exact), "sigmoid", "identity", "silu", "leaky_relu" (0.01 z where z < 0) or "sine" (sin z:
    a frequency is a factor of W and b).

    Differentiable in params and inputs, to any order. dtypes: float32, float64, float16 and bfloat16, in and out; sums in
    float32 or better; float32 under autocast.

    Errors: TypeError for a wrong dtype or what is not a tensor; ValueError for wrong shapes, devices and values.

    Kernels: native CPU and CUDA C++ (up to 8 layers). Source: batched weights as in Finn et al. 2017, arXiv:1703.03400.

    ```python
    import torch
    import fastmeta

    weights = [torch.randn(32, 40, 1), torch.randn(32, 1, 40)]  # of 32 tasks
    params = [weights[0], torch.zeros(32, 40), weights[1], None]
    x = torch.randn(32, 10, 1)
    outputs = fastmeta.mlp_forward(params, x, activation="tanh")
    print(outputs.shape)  # [32, 10, 1]
    ```
    """
    op = "mlp_forward"
    activation = _check.one_of(op, "activation", activation, ACTIVATIONS)
    found = direct(op, (params, inputs), (activation,), CORES)
    if found is not None:
        return found[0]
    mlp = check_mlp(op, params, inputs=inputs)
    (out,) = call(op, (mlp.params, mlp.examples["inputs"]), (activation,), CORES)
    return _check.unfold(out, mlp.lead)

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _check
from .._route import call, direct
from ..types import Activation
from ._mlp import PARAM_CORES, check_mlp, check_network, of_network

CORES = (PARAM_CORES, 2)


def mlp_forward(
    params: Sequence[Tensor | None], inputs: Tensor, *, activation: Activation = "relu", residual_norm: bool = False
) -> Tensor:
    r"""x_l = activation(x_{l-1} W_l' + b_l), the last layer without activation: an MLP with weights of its own for each task.

    Shapes: params `[W_1, b_1, W_2, b_2, ...]`, W `[..., out, in]`, b `[..., out]` or None; inputs `[..., n, in]` ->
    `[..., n, out]`. A parameter has the batch dimensions of the tasks, or lacks them and is shared.
    `activation`: "relu", "tanh", "gelu" (exact), "sigmoid", "identity", "silu", "leaky_relu" (0.01 z where z < 0) or "sine" (sin z:
    a frequency is a factor of W and b; on CUDA NaN beyond 1e15).
    `residual_norm`: the network is a residual block, inputs + gamma * (z - mean z) / sqrt(var z + 1e-5) + beta, z the last
    layer's outputs, mean and variance over their `out` entries (layer norm). params then end with gamma `[..., out]` and beta, `[..., out]`
    or None; out = in. On CUDA the reference runs.

    Differentiable in params and inputs, to any order. dtypes: float32, float64, float16 and bfloat16, in and out; sums in
    float32 or better; float32 under autocast.

    Errors: TypeError for a wrong dtype or what is not a tensor; ValueError for wrong shapes, devices and values.

    Kernels: native CPU and CUDA C++ (up to 8 layers, a norm counts as one). Sources: batched weights as in Finn et al. 2017,
    arXiv:1703.03400; residual blocks of inner networks: Sun et al. 2024, arXiv:2407.04620; Behrouz et al. 2024, arXiv:2501.00663.

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
    network = check_network(op, activation, residual_norm)
    cores = CORES if residual_norm is False else of_network(network, params, CORES)
    found = direct(op, (params, inputs), (network,), cores)
    if found is not None:
        return found[0]
    mlp = check_mlp(op, params, network, inputs=inputs)
    (out,) = call(op, (mlp.params, mlp.examples["inputs"]), (network,), cores)
    return _check.unfold(out, mlp.lead)

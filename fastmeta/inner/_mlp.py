"""What the mlp ops check and bring into canonical form, beside `_network`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import _check
from ..reference.mlp_forward import RESIDUAL_NORM
from ._network import LOSSES, NetworkInput, came, check_tensors, check_weights, folded

ACTIVATIONS = ("relu", "tanh", "gelu", "sigmoid", "identity", "silu", "leaky_relu", "sine")
PARAM_CORES = (2, 1)
EXAMPLE_RANK = 2  # [n, features]


def check_network(op: str, activation: Any, residual_norm: Any) -> str:
    """The word that names the network to references and kernels."""
    network: str = _check.one_of(op, "activation", activation, ACTIVATIONS)
    if residual_norm is False:
        return network
    return network + RESIDUAL_NORM if _check.flag(op, "residual_norm", residual_norm) else network


def check_loss(op: str, loss: Any) -> Any:
    return _check.one_of(op, "loss", loss, LOSSES)


def layers_of(network: str, params: Sequence[Any]) -> Sequence[Any]:
    """The parameters but for gamma and beta of a residual block."""
    return params[:-2] if network.endswith(RESIDUAL_NORM) else params


def of_network(network: str, params: Any, cores: tuple[Any, ...]) -> tuple[Any, ...]:
    """The `cores` of a call with such parameters: gamma and beta of a residual block have one axis."""
    if not network.endswith(RESIDUAL_NORM) or not isinstance(params, list | tuple):
        return cores
    ranks = (*PARAM_CORES * (len(params) // 2 - 1), 1, 1)
    return tuple([ranks if core == PARAM_CORES else core for core in cores])


def check_mlp(op: str, params: Any, network: str, **examples: Tensor) -> NetworkInput:
    """Check parameters and inputs against each other; fold their batch dimensions into one task axis."""
    residual = network.endswith(RESIDUAL_NORM)
    if not isinstance(params, list | tuple) or len(params) < 2 + 2 * residual or len(params) % 2:
        form = "[W1, b1, ..., gamma, beta]" if residual else "[W1, b1, W2, b2, ...]"
        raise ValueError(f"{op}: params must be a sequence {form}, got {came(params)}")
    check_weights(op, params, range(0, len(params), 2))
    (ranks,) = of_network(network, params, (PARAM_CORES,))
    lead = check_tensors(op, params, ranks, examples, EXAMPLE_RANK)
    layers = layers_of(network, params)
    width = _check_widths(op, layers, examples)
    for i in range(len(layers), len(params)):
        if params[i] is not None and params[i].shape[-1] != width:
            raise ValueError(f"{op}: params[{i}] must have {width} entries, got shape {_check.shape(params[i])}")
    if residual and layers[0].shape[-1] != width:
        came_in = layers[0].shape[-1]
        raise ValueError(f"{op}: a residual block must give as many outputs as it takes, {came_in}, got {width}")
    return folded(params, lead, ranks, examples, EXAMPLE_RANK, outputs=len(layers) - 2)


def _check_widths(op: str, params: Sequence[Tensor | None], examples: dict[str, Tensor]) -> int:
    """-> the number of outputs."""
    first = params[0]
    assert first is not None
    for name, x in examples.items():
        if x.shape[-1] != first.shape[-1]:
            raise ValueError(
                f"{op}: {name} must have {first.shape[-1]} features, as params[0], got shape {_check.shape(x)}"
            )
    width = first.shape[-1]
    for i in range(0, len(params), 2):
        weight, bias = params[i], params[i + 1]
        assert weight is not None
        if weight.shape[-1] != width:
            raise ValueError(f"{op}: params[{i}] must take {width} features, got shape {_check.shape(weight)}")
        width = weight.shape[-2]
        if width < 1:
            raise ValueError(f"{op}: params[{i}] must have at least one output, got shape {_check.shape(weight)}")
        if bias is not None and bias.shape[-1] != width:
            raise ValueError(f"{op}: params[{i + 1}] must have {width} entries, got shape {_check.shape(bias)}")
    return width

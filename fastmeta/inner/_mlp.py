"""What the mlp ops check and bring into canonical form, beside `_network`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import _check
from ._network import LOSSES, NetworkInput, came, check_tensors, check_weights, folded

ACTIVATIONS = ("relu", "tanh", "gelu", "sigmoid", "identity", "silu", "leaky_relu", "sine")
PARAM_CORES = (2, 1)
EXAMPLE_RANK = 2  # [n, features]


def check_loss(op: str, activation: Any, loss: Any) -> tuple[Any, Any]:
    return _check.one_of(op, "activation", activation, ACTIVATIONS), _check.one_of(op, "loss", loss, LOSSES)


def check_mlp(op: str, params: Any, **examples: Tensor) -> NetworkInput:
    """Check parameters and inputs against each other; fold their batch dimensions into one task axis."""
    if not isinstance(params, list | tuple) or len(params) < 2 or len(params) % 2:
        raise ValueError(f"{op}: params must be a sequence [W1, b1, W2, b2, ...], got {came(params)}")
    check_weights(op, params, range(0, len(params), 2))
    lead = check_tensors(op, params, PARAM_CORES, examples, EXAMPLE_RANK)
    _check_widths(op, params, examples)
    return folded(params, lead, PARAM_CORES, examples, EXAMPLE_RANK)


def _check_widths(op: str, params: Sequence[Tensor | None], examples: dict[str, Tensor]) -> None:
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

"""Whether a GPU may round the factors of products of float32."""

from __future__ import annotations

import functools
from typing import Literal

from ._replay import recording
from ._torch import fp32_precision


def allows_tf32(products: Literal["matmul", "conv"]) -> bool:
    """Whether torch's own products of matrices, or its convolutions, may be in TF32.

    Every interface of torch sets what `fp32_precision` tells, that which a product inherits included; reading `allow_tf32`
    raises once the newer ones were used.
    """
    allowed: bool = fp32_precision("cuda", products) == "tf32"
    if recording.recorder is not None:
        recording.recorder.guards.append((functools.partial(allows_tf32, products), allowed))
    return allowed

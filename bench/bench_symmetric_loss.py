import pytest
import torch

import fastmeta
from harness import head_formulas as formulas
from measure.contenders import compiled, forward_and_backward, on_backends


@pytest.mark.parametrize("B", [1024, 4096])
def bench_symmetric_loss(race, B):
    """Forward and backward of CLIP's loss, cosine, and as two calls of proto_loss."""
    D, own = 512, torch.arange(B)
    leaves = [torch.randn(B, D, requires_grad=True) for _ in range(2)]
    options = {"metric": "cosine", "temperature": 0.07}

    def ours(x, y):
        return fastmeta.symmetric_loss(x, y, **options)

    def twice(x, y):
        return (fastmeta.proto_loss(x, y, own, **options) + fastmeta.proto_loss(y, x, own, **options)) / 2

    def whole(x, y):
        return formulas.clip(x, y, 1 / 0.07)

    race(
        f"symmetric_loss fwd+bwd B{B} D{D}",
        on_backends(forward_and_backward(ours, leaves), reference=False)
        | {"whole matrix": forward_and_backward(whole, leaves)},
        also={"two calls of proto_loss": forward_and_backward(twice, leaves)},
        compiled={"compiled whole matrix": forward_and_backward(compiled(whole), leaves)},
        truth=forward_and_backward(whole, leaves),
        floor=(2 * sum(t.nbytes for t in leaves), 6 * B * B * D),
        mode="forward + backward",
        memory=True,
    )

import pytest
import torch

import fastmeta
from harness import head_formulas as formulas
from measure.contenders import compiled, forward_and_backward, on_backends


@pytest.mark.parametrize("shape", [(64, 10, 256)], ids=str)
def bench_proto_loss_loo(race, shape):
    """Forward and backward of GE2E's loss: `speakers` classes of `utterances` examples, cosine."""
    speakers, utterances, D = shape
    leaves = [torch.randn(speakers * utterances, D, requires_grad=True)]
    labels = torch.arange(speakers).repeat_interleave(utterances)

    def ours(x):
        return fastmeta.proto_loss_loo(x, labels, speakers, metric="cosine", temperature=0.1)

    def whole(x):
        return formulas.ge2e(x.unflatten(0, (speakers, utterances)), 10.0, 0.0)

    race(
        f"proto_loss_loo fwd+bwd S{speakers * utterances} N{speakers} D{D}",
        on_backends(forward_and_backward(ours, leaves), reference=False)
        | {"whole matrix": forward_and_backward(whole, leaves)},
        compiled={"compiled whole matrix": forward_and_backward(compiled(whole), leaves)},
        truth=forward_and_backward(whole, leaves),
        floor=(2 * leaves[0].nbytes, 6 * speakers * utterances * speakers * D),
        mode="forward + backward",
    )

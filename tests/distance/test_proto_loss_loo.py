import pytest
import torch

import fastmeta
from fastmeta import reference
from harness.cases import PROTO, randn
from harness.compare import values_and_grads
from harness.distance_cases import labels_of, metrics


@metrics
@pytest.mark.parametrize("backend", PROTO, indirect=True)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_is_the_loss_with_prototypes_of_each_examples_own(metric, reduction, backend):
    """Classes of two to four examples, at an offset; the reference makes all prototypes, [S, N, D]."""
    x, temperature, labels = 50 + randn(2, 11, 4), torch.tensor(0.6, dtype=torch.float64), labels_of(4, 2, 11)
    static = (metric, reduction)
    ours = values_and_grads(
        lambda x, t: fastmeta.proto_loss_loo(x, labels, 4, metric=metric, temperature=t, reduction=reduction),
        [x, temperature],
    )
    truth = values_and_grads(lambda x, t: reference.proto_loss_loo(x, labels, 4, t, *static), [x, temperature])
    torch.testing.assert_close(ours, truth)


def test_sixteen_bits_are_computed_in_float32():
    x, labels = randn(8, 5, dtype=torch.bfloat16), torch.arange(8) % 4
    found = fastmeta.proto_loss_loo(x, labels, 4)
    assert torch.equal(found, fastmeta.proto_loss_loo(x.float(), labels, 4).bfloat16())


@pytest.mark.cpu
def test_errors():
    x, labels = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 2])
    for args, error, message in (
        ((x, labels, 3), ValueError, "every class must have two examples, got one of class 2"),
        ((x, labels, 2), ValueError, r"labels must be in \[0, 2\), got 2"),
        ((x, labels[:3], 3), ValueError, r"labels must have shape \[5\], got \[3\]"),
        ((x.long(), labels, 3), TypeError, "embeddings must be float32"),
    ):
        with pytest.raises(error, match="proto_loss_loo: " + message):
            fastmeta.proto_loss_loo(*args)

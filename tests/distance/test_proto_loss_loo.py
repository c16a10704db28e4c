import functools

import pytest
import torch

import fastmeta
from fastmeta.reference.proto_log_softmax import distances
from harness.cases import PROTO, randn
from harness.compare import check_against_reference, check_threads, values_and_grads
from harness.distance_cases import labels_of, metrics


def with_all_prototypes(x, labels, num_classes, temperature, metric):
    """[T, S] losses from prototypes of its own for each example, [T, S, N, D]."""
    member = torch.nn.functional.one_hot(labels, num_classes).to(x.dtype)
    others = 1 - torch.eye(labels.shape[-1], dtype=x.dtype)
    centres = torch.einsum("ij,...jn,...jd->...ind", others, member, x) / (others @ member).unsqueeze(-1)
    log_p = torch.log_softmax(-distances(x.unsqueeze(-2), centres, metric).squeeze(-2) / temperature, -1)
    return -log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


@metrics
@pytest.mark.parametrize("backend", PROTO, indirect=True)
def test_is_the_loss_with_prototypes_of_each_examples_own(metric, backend):
    """Classes of two to four examples, at an offset; one is a zero vector: gradients, and derivatives of theirs, to examples and
    temperature for a cotangent of each loss."""
    x, temperature, labels = 50 + randn(2, 11, 4), torch.tensor(0.6, dtype=torch.float64), labels_of(4, 2, 11)
    x[1, 3], counted = 0, randn(2, 11)

    def ours(x, t):
        of_each = fastmeta.proto_loss_loo(x, labels, 4, metric=metric, temperature=t, reduction="none")
        mean = fastmeta.proto_loss_loo(x, labels, 4, metric=metric, temperature=t)
        of_sum = fastmeta.proto_loss_loo(x, labels, 4, metric=metric, temperature=t, reduction="sum")
        return (of_each * counted).sum() + (mean * counted[:, 0]).sum() + (of_sum * counted[:, 1]).sum()

    def truth(x, t):
        losses = with_all_prototypes(x, labels, 4, t, metric)
        return (losses * (counted + counted[:, :1] / 11 + counted[:, 1:2])).sum()

    tensors = [x, temperature]
    torch.testing.assert_close(values_and_grads(ours, tensors), values_and_grads(truth, tensors))
    if backend == "triton":  # of order 2 that of its parts
        return
    x[1, 3] = 3  # without a second derivative at 0
    found, expected = (values_and_grads(lambda *a, f=f: square_of_gradients(f, *a), tensors) for f in (ours, truth))
    torch.testing.assert_close(found, expected)


def square_of_gradients(fn, *tensors):
    return sum(g.square().sum() for g in torch.autograd.grad(fn(*tensors), tensors, create_graph=True))


@pytest.mark.cpu
@metrics
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_long_rows(metric, dtype):
    """Rows longer than one of the sums inside: as exact as the reference of that dtype, and the same bits on any number of threads."""
    labels, x, temperature = (
        torch.arange(130) % 11,
        3 + randn(130, 530, dtype=dtype),
        0.1 if metric == "cosine" else 20.0,
    )
    fn = functools.partial(fastmeta.proto_loss_loo, metric=metric, temperature=temperature)
    check_against_reference(lambda x: fn(x, labels[:23], 11), [x[:23]], "ext")
    check_threads(lambda: values_and_grads(lambda x: fn(x, labels, 11), [x]))


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

import pytest
import torch
import torch.nn.functional as F

import fastmeta
from harness.compare import check_against_reference
from harness.mlp_calls import loss as loss_of
from harness.mlp_cases import any_net, everywhere, losses, native, problem

test_any_net = any_net(loss_of)


@losses
@native
def test_equals_pytorchs_losses(backend, loss):
    p = problem((3, 5, 4), 7, loss=loss)
    outputs = fastmeta.mlp_forward(p.params, p.x, activation="tanh")
    expected = [getattr(F, "mse_loss" if loss == "mse" else loss)(o, y) for o, y in zip(outputs, p.y, strict=True)]
    torch.testing.assert_close(fastmeta.mlp_loss(p.params, p.x, p.y, **p.options()), torch.stack(expected))


@losses
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@native
def test_other_dtypes(backend, loss, dtype):
    p = problem((7, 33, 4), 17, loss=loss, dtype=dtype)
    check_against_reference(*loss_of(p), backend)


@everywhere
def test_a_task_without_examples_has_loss_0(backend):
    p = problem((3, 5, 4), 6)
    p.y[1] = -100
    params = [t.requires_grad_() for t in p.params]
    found = fastmeta.mlp_loss(params, p.x, p.y)
    assert found[1] == 0 and found[0] > 0
    assert all(not g.any() for g in torch.autograd.grad(found[1], params))


@native
def test_large_logits(backend):
    p = problem((3, 4), 5, dtype=torch.float32)
    check_against_reference(loss_of(p)[0], [*(1e4 * t for t in p.flat), p.x], backend)


@pytest.mark.cpu
@native
def test_errors(backend):
    w, b, x, y = torch.ones(2, 3), torch.ones(2), torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
    for targets, loss, message in (
        (y + 1, "cross_entropy", r"targets must be in \[0, 2\) or ignore_index=-100, got 2"),
        (y[:2], "cross_entropy", r"targets must have shape \[4\], got \[2\]"),
        (x, "mse", r"targets must have shape \[4, 2\], got \[4, 3\]"),
        (y, "hinge", "loss must be one of 'cross_entropy', 'mse', got 'hinge'"),
    ):
        with pytest.raises(ValueError, match="mlp_loss: " + message):
            fastmeta.mlp_loss([w, b], x, targets, loss=loss)
    with pytest.raises(TypeError, match="mlp_loss: targets must be int64 class indices, got torch.float32"):
        fastmeta.mlp_loss([w, b], x, y.float())

import pytest
import torch

import fastmeta
from harness.compare import check_against_reference
from harness.conv_cases import any_net, both, ext, kinds, module, problem, same, single, task_loss
from harness.mlp_calls import loss as loss_of
from harness.mlp_cases import losses

test_any_net = any_net(loss_of)


@kinds
@losses
@both
def test_equals_torch_modules(backend, kind, loss):
    p = problem(kind, size=12, loss=loss)
    expected = [task_loss(module(p, t)(p.x[t]), p.y[t]) for t in range(3)]
    same([fastmeta.conv_loss(p.params, p.x, p.y, **p.options())], [torch.stack(expected)])


@losses
@ext
def test_float32(backend, loss):
    check_against_reference(*loss_of(single(loss=loss)), "ext")


@both
def test_no_example_counts(backend):
    p = problem("no norm")
    x = p.x.requires_grad_()
    for inputs, targets in ((x, torch.full_like(p.y, -100)), (x[:, :0], p.y[:, :0])):
        found = fastmeta.conv_loss(p.params, inputs, targets, **p.options())
        assert not found.any() and not torch.autograd.grad(found.sum(), x)[0].any()


@both
def test_errors(backend):
    p = problem()
    for targets, loss, message in (
        (torch.full_like(p.y, 7), "cross_entropy", r"targets must be in \[0, 3\) or ignore_index=-100, got 7"),
        (p.y[:, :4], "cross_entropy", r"targets must have shape \[3, 5\], got \[3, 4\]"),
        (p.y, "l1", "loss must be one of 'cross_entropy', 'mse', got 'l1'"),
    ):
        with pytest.raises(ValueError, match="conv_loss: " + message):
            fastmeta.conv_loss(p.params, p.x, targets, blocks=p.blocks, loss=loss)

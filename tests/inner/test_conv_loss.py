import pytest
import torch
from hypothesis import given, settings

import fastmeta
from harness.compare import check_against_reference
from harness.conv_cases import both, ext, kinds, losses, module, problem, problems, same, task_loss


def make(p):
    n = len(p.flat)
    targets = [p.y] if p.loss == "mse" else []

    def fn(*t):
        return fastmeta.conv_loss(p.tree(t[:n]), t[n], t[n + 1] if targets else p.y, **p.options())

    return fn, [*p.flat, p.x, *targets]


@kinds
@losses
@both
def test_equals_torch_modules(backend, kind, loss):
    p = problem(kind, size=12, loss=loss)
    expected = [task_loss(module(p, t)(p.x[t]), p.y[t]) for t in range(3)]
    same([fastmeta.conv_loss(p.params, p.x, p.y, **p.options())], [torch.stack(expected)])


@settings(max_examples=60, deadline=None)
@given(problems())
def test_any_net(p):
    check_against_reference(*make(p), "ext")


@losses
@ext
def test_float32(backend, loss):
    check_against_reference(*make(problem(channels=17, size=14, loss=loss, dtype=torch.float32)), "ext")


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
    with pytest.raises(ValueError, match=r"conv_loss: targets must be in \[0, 3\) or ignore_index=-100, got 7"):
        fastmeta.conv_loss(p.params, p.x, torch.full_like(p.y, 7), **p.options())
    with pytest.raises(ValueError, match=r"conv_loss: targets must have shape \[3, 5\], got \[3, 4\]"):
        fastmeta.conv_loss(p.params, p.x, p.y[:, :4], **p.options())
    with pytest.raises(ValueError, match="conv_loss: loss must be one of 'cross_entropy', 'mse', got 'l1'"):
        fastmeta.conv_loss(p.params, p.x, p.y, blocks=p.blocks, loss="l1")

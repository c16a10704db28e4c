import torch
from hypothesis import given, settings

import fastmeta
from harness.compare import check_against_reference
from harness.conv_cases import both, ext, kinds, losses, module, problem, problems, same, task_loss


def make(p):
    n = len(p.flat)
    targets = [p.y] if p.loss == "mse" else []

    def fn(*t):
        loss, grads = fastmeta.conv_grad(p.tree(t[:n]), t[n], t[n + 1] if targets else p.y, **p.options())
        return (loss, *(g for g in grads if g is not None))

    return fn, [*p.flat, p.x, *targets]


@kinds
@losses
@both
def test_equals_torch_autograd(backend, kind, loss):
    for shared in (False, True):
        p = problem(kind, size=12, loss=loss, shared=shared, bias=shared)
        fn, tensors = make(p)
        found = [[] for _ in range(1 + len(p.flat))]
        for t in range(3):
            model = module(p, t)
            value = task_loss(model(p.x[t]), p.y[t])
            grads = torch.autograd.grad(value, list(model.parameters()))
            for each, x in zip(found, (value, *grads), strict=True):
                each.append(x.detach())
        same(fn(*tensors), [torch.stack(each) for each in found])


@settings(max_examples=60, deadline=None)
@given(problems())
def test_any_net(p):
    check_against_reference(*make(p), "ext")


@losses
@ext
def test_float32(backend, loss):
    check_against_reference(*make(problem(channels=17, size=14, loss=loss, dtype=torch.float32)), "ext")

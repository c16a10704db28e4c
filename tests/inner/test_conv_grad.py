import torch

from harness.compare import check_against_reference, outputs
from harness.conv_cases import any_net, both, ext, kinds, module, problem, same, single, task_loss
from harness.mlp_calls import grad
from harness.mlp_cases import losses

test_any_net = any_net(grad)


@kinds
@losses
@both
def test_equals_torch_autograd(backend, kind, loss):
    for shared in (False, True):
        p = problem(kind, size=12, loss=loss, shared=shared, bias=shared)
        fn, tensors = grad(p)
        found = []
        for t in range(3):
            model = module(p, t)
            value = task_loss(model(p.x[t]), p.y[t])
            found.append([value.detach(), *torch.autograd.grad(value, list(model.parameters()))])
        same(outputs(fn(*tensors)), list(map(torch.stack, zip(*found, strict=True))))


@losses
@ext
def test_float32(backend, loss):
    check_against_reference(*grad(single(loss=loss)), "ext")

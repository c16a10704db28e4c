"""Every transform as a function of a subject, and what it has to give."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as fwAD
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from harness.compare import outputs
from harness.transform_truths import (
    OPTIONS,
    dot,
    gradients,
    in_turn,
    leaves,
    of_ensemble,
    of_gradient,
    of_gradients,
    of_hessian,
    of_jacobian,
    of_one_in_turn,
    of_own_parameters,
    of_products,
    of_slope,
    of_stacked_gradients,
    of_values,
)

AOT_OF_VMAP = ("proto_loss", "sgd_step", "mlp_meta_loss", "hvp", "ProtoNet")  # one of each kind: it takes as long again


def compiled(function, backend="aot_eager"):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


def compiled_vmap_of_grad(s):
    return compiled(vmap(s.gradient), "aot_eager" if s.name in AOT_OF_VMAP else "eager")(*s.stacked)


def vmap_over_one(s):
    """One tensor after the other has a new axis, at its end; the others are shared."""
    found = []
    for i in in_turn(s):
        in_dims = tuple(-1 if j == i else None for j in s.every)
        tensors = [t.movedim(0, -1) if j == i else s.tensors[j] for j, t in enumerate(s.stacked)]
        found += vmap(s.outputs, in_dims)(*tensors)
    return found


def vmap_of_vmap_of_grad(s):
    return [x[0] for x in vmap(vmap(s.gradient))(*(t.unsqueeze(0) for t in s.stacked))]


def vmap_of_meta_gradient(s):
    """The gradient of a function that takes a gradient, for every row."""
    rows = vmap(grad(lambda *t: dot(s.gradient(*t), s.tangents), s.every))(*(t[:2] for t in s.stacked))
    return [x[0] for x in rows]


def forward_mode(s):
    with fwAD.dual_level():
        duals = [fwAD.make_dual(t, v) for t, v in zip(s.tensors, s.tangents, strict=True)]
        return (fwAD.unpack_dual(s.scalar(*duals)).tangent,)


def forward_over_backward(s):
    with fwAD.dual_level():
        duals = [fwAD.make_dual(t, v) for t, v in zip(leaves(s.tensors), s.tangents, strict=True)]
        grads = torch.autograd.grad(s.scalar(*duals), duals, create_graph=True, **OPTIONS)
        found = [fwAD.unpack_dual(g).tangent for g in grads]
        return [torch.zeros_like(t) if v is None else v for t, v in zip(s.tensors, found, strict=True)]


def double_backward(s):
    inputs = leaves(s.tensors)
    grads = torch.autograd.grad(s.scalar(*inputs), inputs, create_graph=True, **OPTIONS)
    return torch.autograd.grad(dot(grads, s.tangents), inputs, **OPTIONS)


@functools.lru_cache(maxsize=1)
def compiled_scalar(s):
    """`s.scalar` compiled once for two transforms, and what its second derivative raises: asked for first, because torch says
    something else after a backward without create_graph."""
    function, inputs = compiled(s.scalar), leaves(s.tensors)
    try:
        grads = torch.autograd.grad(function(*inputs), inputs, create_graph=True, **OPTIONS)
        dot(grads, s.tangents).backward()
    except Exception as error:
        return function, error.with_traceback(None)
    return function, None


def second_backward_of_compiled(s):
    _, error = compiled_scalar(s)
    if error:
        raise error


class Passing(TorchDispatchMode):
    """Every operation as it is: what FlopCounterMode and other modes do that look on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def double_backward_in_a_mode(s):
    with Passing():
        return double_backward(s)


def vmap_of_backward(s, batched):
    """Many cotangents at once: `is_grads_batched`, or torch.vmap around torch.autograd.grad."""
    inputs = leaves(s.tensors)
    y = s.first(*inputs)
    units = torch.eye(len(y), dtype=y.dtype)
    if batched:
        found = torch.autograd.grad(y, inputs, units, is_grads_batched=True, **OPTIONS)
        return [x.expand(len(y), *t.shape) for x, t in zip(found, inputs, strict=True)]  # torch's 0 has no axis
    return vmap(lambda unit: torch.autograd.grad(y, inputs, unit, retain_graph=True, **OPTIONS))(units)


def without_grad(mode):
    return lambda s: [y.clone() for y in _in(mode, s.outputs, s.tensors)]


def _in(mode, function, tensors):
    with mode():
        return function(*(t.clone() for t in tensors))


def checkpointed(reentrant):
    def found(s):
        inputs = leaves(s.tensors)
        checkpoint(s.scalar, *inputs, use_reentrant=reentrant).backward()
        return [torch.zeros_like(x) if x.grad is None else x.grad for x in inputs]

    return found


def deterministic(s):
    torch.use_deterministic_algorithms(True)  # an error where there is none; conftest.py takes it back
    found = gradients(s.scalar, s.tensors)
    assert all(map(torch.equal, found, gradients(s.scalar, s.tensors)))
    return found


def exported(strict):
    class Module(torch.nn.Module):
        def __init__(self, s):
            super().__init__()
            self.fn, self.loss = s.fn, s.loss

        def forward(self, *tensors):
            return outputs(self.fn(*tensors))

    def found(s):
        torch._dynamo.reset()
        program = torch.export.export(Module(s), s.moved[1], strict=strict).module()
        return program(*s.tensors), gradients(lambda *t: sum(y.sin().sum() for y in program(*t)), s.tensors)

    return found


def replaced(s):
    """torch.func.functional_call of the learner itself: `s.fn` is one, here with tensors that require no gradient."""
    return s.outputs(*s.moved[1])


def ensemble(s):
    """The loss of learners with other parameters on the same tasks, all at once."""
    members = [copy.deepcopy(s.loss) for _ in s.moved]
    with torch.no_grad():
        for member, values in zip(members, s.moved, strict=True):
            for p, value in zip(member.parameters(), values, strict=False):
                p.copy_(value)
    stacked, _ = stack_module_state(members)
    *_, sx, qx = s.tensors
    episode = (sx, s.labels[0], qx, s.labels[1])
    of_one = grad(lambda params: functional_call(s.loss, params, episode).sin().sum())
    return list(vmap(of_one)(stacked).values())


@dataclass
class Transform:
    ours: Callable
    truth: Callable
    compiles: bool = False  # or traces: slow, on the default backend alone
    learners_only: bool = False


def compiling(ours, truth):
    return Transform(ours, truth, compiles=True)


TRANSFORMS = {
    "autograd": Transform(lambda s: (dot(gradients(s.scalar, s.tensors), s.tangents),), of_gradient),
    "double backward": Transform(double_backward, of_products),
    "double backward in a `TorchDispatchMode`": Transform(double_backward_in_a_mode, of_products),
    "`is_grads_batched`": Transform(lambda s: vmap_of_backward(s, True), of_jacobian),
    "`vmap` of backward": Transform(lambda s: vmap_of_backward(s, False), of_jacobian),
    "forward AD": Transform(forward_mode, of_slope),
    "forward AD through backward": Transform(forward_over_backward, of_products),
    "`no_grad`": Transform(without_grad(torch.no_grad), of_values),
    "`inference_mode`": Transform(without_grad(torch.inference_mode), of_values),
    "`grad`": Transform(lambda s: s.gradient(*s.tensors), of_gradients),
    "`grad` in `no_grad`": Transform(lambda s: _in(torch.no_grad, s.gradient, s.tensors), of_gradients),
    "`grad` in `inference_mode`": Transform(
        lambda s: [g.clone() for g in _in(torch.inference_mode, s.gradient, s.tensors)], of_gradients
    ),
    "`vmap`, one tensor": Transform(vmap_over_one, of_one_in_turn),
    "`grad(vmap)`": Transform(
        lambda s: grad(lambda *t: vmap(s.scalar)(*t).sum(), s.every)(*s.stacked), of_stacked_gradients
    ),
    "`vmap(grad)`": Transform(lambda s: vmap(s.gradient)(*s.stacked), of_stacked_gradients),
    "`vmap(vmap(grad))`": Transform(vmap_of_vmap_of_grad, of_stacked_gradients),
    "`vmap(grad(grad))`": Transform(vmap_of_meta_gradient, of_products),
    "`jvp`": Transform(lambda s: (jvp(s.scalar, s.tensors, s.tangents)[1],), of_slope),
    "`linearize`": compiling(lambda s: (linearize(s.scalar, *s.tensors)[1](*s.tangents),), of_slope),
    "`jvp(grad)`": Transform(lambda s: jvp(s.gradient, s.tensors, s.tangents)[1], of_products),
    "`grad(jvp)`": Transform(
        lambda s: grad(lambda *t: jvp(s.scalar, t, s.tangents)[1], s.every)(*s.tensors), of_products
    ),
    "`jacrev`": Transform(lambda s: jacrev(s.first, s.every)(*s.tensors), of_jacobian),
    "`jacfwd`": Transform(lambda s: jacfwd(s.first, s.every)(*s.tensors), of_jacobian),
    "`hessian`": Transform(lambda s: (hessian(s.scalar)(*s.tensors),), of_hessian),
    "`functional_call`": Transform(replaced, of_own_parameters, learners_only=True),
    "`vmap` of `stack_module_state`": Transform(ensemble, of_ensemble, learners_only=True),
    "`checkpoint`, `use_reentrant=False`": Transform(checkpointed(False), of_gradients),
    "`checkpoint`, `use_reentrant=True`": Transform(checkpointed(True), of_gradients),
    "`use_deterministic_algorithms(True)`": Transform(deterministic, of_gradients),
    "`make_fx`": Transform(lambda s: make_fx(s.outputs)(*s.moved[1])(*s.tensors), of_values),
    "`torch.compile`, forward and backward": compiling(
        lambda s: gradients(compiled_scalar(s)[0], s.tensors), of_gradients
    ),
    "a second derivative of a compiled function": compiling(second_backward_of_compiled, of_products),
    "`torch.compile` of `vmap(grad)`": compiling(compiled_vmap_of_grad, of_stacked_gradients),
    "`torch.export`, `strict=False`": compiling(exported(False), lambda s: (of_values(s), of_gradients(s))),
    "`torch.export`, `strict=True`": compiling(exported(True), lambda s: (of_values(s), of_gradients(s))),
}

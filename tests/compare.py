"""How the tests compare: against the float64 reference, with the reference's own error as the measure."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import fastmeta
from fastmeta._dispatch import tensors_of as outputs


def values_and_grads(
    fn: Callable, tensors: Sequence[Tensor], cotangents: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """The outputs of `fn` and its gradients to `tensors` (zeros where it does not depend on one)."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    found = outputs(fn(*leaves))
    cotangents = (
        [torch.ones_like(y) for y in found]
        if cotangents is None
        else [c.to(y.dtype) for c, y in zip(cotangents, found, strict=True)]
    )
    grads = torch.autograd.grad(found, leaves, cotangents, allow_unused=True, materialize_grads=True)
    return [t.detach() for t in (*found, *grads)]


def check_against_reference(fn: Callable, tensors: Sequence[Tensor], backend: str, factor: float = 2.0) -> None:
    """Outputs and gradients of `fn` on `backend`: error at most `factor` times that of the reference in the same dtype (plus
    four roundings of the largest element), both against the reference in float64. In float64 itself the two may differ by
    1e-11 of the largest element (or of 1, where terms cancel)."""
    with fastmeta.backend("reference"):
        truth_inputs = [t.double() for t in tensors]
        shapes = [y.shape for y in outputs(fn(*truth_inputs))]
        cotangents = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
        truth = values_and_grads(fn, truth_inputs, cotangents)
        plain = values_and_grads(fn, tensors, cotangents)
    with fastmeta.backend(backend):
        ours = values_and_grads(fn, tensors, cotangents)
    for index, (o, p, t) in enumerate(zip(ours, plain, truth, strict=True)):
        assert o.shape == p.shape and o.dtype == p.dtype, (index, o.shape, p.shape, o.dtype, p.dtype)
        if not o.numel():
            continue
        torch.testing.assert_close(o.isnan(), t.isnan(), msg=f"NaN at other places in result {index}")
        o, p, t = (x.double().nan_to_num() for x in (o, p, t))
        largest = t.abs().max()
        worst, allowed = (
            (o - t).abs().max(),
            factor * (p - t).abs().max() + 4 * torch.finfo(tensors[0].dtype).eps * largest,
        )
        if tensors[0].dtype == torch.float64:
            allowed = 1e-11 * largest.clamp(min=1)
        assert worst <= allowed, f"result {index}: error {worst:.3e}, allowed {allowed:.3e}"

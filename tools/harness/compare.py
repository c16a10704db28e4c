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


def scalar(case) -> Callable:
    """A number of all that a case gives."""
    return lambda *tensors: sum(y.sin().sum() for y in outputs(case.fn(*tensors)))


def check_against_reference(
    fn: Callable, tensors: Sequence[Tensor] | Callable, backend: str, cancelling: bool = False
) -> None:
    """Outputs and gradients of `fn` on `backend`: RMS error at most twice that of the reference in the same dtype (plus four
    roundings of the RMS value), both against the reference in float64. In float64 itself the two may differ by 1e-11 of the
    largest element (or of 1, where terms cancel). `tensors` may be a function that draws them: then over eight draws, for
    results where one element carries the error: of one number the reference's own error is now and then 0 by luck.

    `cancelling`: of float64, where a result is the rest of terms of any size, such as the gradient to a bias before a norm, it may
    also differ by twice what the reference itself does when its inputs move by a rounding.
    """
    draws = [tensors() for _ in range(8)] if callable(tensors) else [tensors]
    cotangents = [_cotangents(fn, drawn) for drawn in draws]
    found = [_three_ways(fn, drawn, of, backend) for drawn, of in zip(draws, cotangents, strict=True)]
    for index, of_draws in enumerate(zip(*found, strict=True)):
        ours, plain, truth = (torch.cat([of[i].double().flatten() for of in of_draws]) for i in range(3))
        torch.testing.assert_close(ours.isnan(), truth.isnan(), msg=f"NaN at other places in result {index}")
        ours, plain, truth = (x.nan_to_num() for x in (ours, plain, truth))
        dtype = draws[0][0].dtype
        error, allowed = (
            (_largest if dtype == torch.float64 else _rms)(ours - truth),
            allowed_error(plain, truth, dtype),
        )
        if cancelling and dtype == torch.float64 and error > allowed:
            allowed = max(allowed, 2 * _moved(fn, draws[0], cotangents[0], index))
        assert error <= allowed, f"result {index}: error {error:.3e}, allowed {allowed:.3e}"


def allowed_error(plain: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    """As check_against_reference says: of the largest element in float64, of the RMS in what is less. `plain`: the reference's result in
    `dtype`, as float64."""
    if dtype == torch.float64:
        return 1e-11 * max(_largest(truth), 1.0)
    return 2 * _rms(plain - truth) + 4 * torch.finfo(dtype).eps * _rms(truth)


def check_threads(compute: Callable[[], Sequence[Tensor]]) -> None:
    """`compute` gives the same bits on any number of threads."""
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(compute())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def _cotangents(fn: Callable, tensors: Sequence[Tensor]) -> list[Tensor]:
    with fastmeta.backend("reference"):
        shapes = [y.shape for y in outputs(fn(*(t.double() for t in tensors)))]
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def _three_ways(
    fn: Callable, tensors: Sequence[Tensor], cotangents: Sequence[Tensor], backend: str
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Each output and gradient: on `backend`, on the reference, on the reference in float64."""
    with fastmeta.backend("reference"):
        truth = values_and_grads(fn, [t.double() for t in tensors], cotangents)
        plain = values_and_grads(fn, tensors, cotangents)
    with fastmeta.backend(backend):
        ours = values_and_grads(fn, tensors, cotangents)
    for o, p in zip(ours, plain, strict=True):
        assert o.shape == p.shape and o.dtype == p.dtype, (o.shape, p.shape, o.dtype, p.dtype)
    return list(zip(ours, plain, truth, strict=True))


def _moved(fn: Callable, tensors: Sequence[Tensor], cotangents: Sequence[Tensor], index: int) -> float:
    """The most that a result of the reference changes over four draws of float64 inputs, each moved by up to a rounding."""
    eps = torch.finfo(torch.float64).eps
    with fastmeta.backend("reference"):
        truth = values_and_grads(fn, tensors, cotangents)[index]
        moved = ([t * (1 + eps * (2 * torch.rand_like(t) - 1)) for t in tensors] for _ in range(4))
        return max(_largest(values_and_grads(fn, inputs, cotangents)[index] - truth) for inputs in moved)


def _largest(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item() if x.numel() else 0.0

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Required, TypeAlias, TypedDict, TypeVar, Unpack, overload

import torch
from torch import Tensor, nn

from ._torch import is_functional
from .loops.captured import Captured
from .loops.given import loop_of
from .loops.loop import Loop, Replay
from .loops.optimisers import InnerOptimiser
from .loops.trajectory import Unrolled, Way, autocast_of, unrolled, without_cache

Params = TypeVar("Params", bound=Mapping[str, Any] | Sequence[Any])
InnerLoss: TypeAlias = Callable[..., Tensor] | nn.Module | tuple[nn.Module, str | Callable[[Any, Any], Tensor]]
Batches: TypeAlias = Sequence[object] | Callable[[int], object]
State: TypeAlias = dict[str, object]


class _Options(TypedDict, total=False):
    optimiser: Required[InnerOptimiser]
    state: Mapping[str, object] | None
    steps: int | None
    keep: Literal["all", "sqrt"]
    tasks: bool | int
    first_order: bool


@overload
def unroll(
    loss: InnerLoss, params: nn.Module, batches: Batches, *, outer: None = None, **options: Unpack[_Options]
) -> tuple[dict[str, Tensor], State]: ...
@overload
def unroll(
    loss: InnerLoss,
    params: nn.Module,
    batches: Batches,
    *,
    outer: Callable[[dict[str, Tensor]], Tensor] | Sequence[Callable[[dict[str, Tensor]], Tensor] | None],
    **options: Unpack[_Options],
) -> tuple[Tensor, State]: ...
@overload
def unroll(
    loss: InnerLoss, params: Iterator[Tensor], batches: Batches, *, outer: None = None, **options: Unpack[_Options]
) -> tuple[list[Tensor], State]: ...
@overload
def unroll(
    loss: InnerLoss, params: Params, batches: Batches, *, outer: None = None, **options: Unpack[_Options]
) -> tuple[Params, State]: ...
@overload
def unroll(
    loss: InnerLoss,
    params: Params,
    batches: Batches,
    *,
    outer: Callable[[Params], Tensor] | Sequence[Callable[[Params], Tensor] | None],
    **options: Unpack[_Options],
) -> tuple[Tensor, State]: ...
def unroll(
    loss: InnerLoss,
    params: Any,
    batches: Batches,
    *,
    optimiser: InnerOptimiser,
    state: Mapping[str, object] | None = None,
    steps: int | None = None,
    outer: Any = None,
    keep: Literal["all", "sqrt"] = "all",
    tasks: bool | int = False,
    first_order: bool = False,
) -> tuple[Any, State]:
    r"""(theta_{k+1}, s_{k+1}) = U(theta_k, s_k, dL(theta_k, x_k)/dtheta) for k = 0 .. K-1, with derivatives and without a graph over
    the steps. U is the optimiser, s its state, x_k the batch of step k. Returns (theta_K, s_K), or with `outer` (losses, s_K).

    `loss`: loss(params, *batch) -> a scalar; or a module whose forward gives the loss of a batch; or (module, criterion), which is
    criterion(module(*batch[:-1]), batch[-1]), criterion being "cross_entropy", "mse" or a function.
    `params`: a dict, a list, nested ones, or a module: its parameters that are trained. All of them change; results have the
    same structure. No parameter of a module is written to.
    `batches`: a list of K tuples; or a tuple of tensors `[K, ...]`; or with `steps=K` one tuple for all steps, or a function of k that
    gives that of step k. A function is called again on the way back and must give the same again.
    `optimiser`: `fastmeta.SGD(lr, ...)` or `fastmeta.Adam(lr, ...)`.
    `state`: what another call gave; None: a new one. It is a dict of "step", an int, and trees like `params`.
    `outer`: outer(params) -> a scalar, the loss at theta_K; or a list of K, each for the parameters after its step, or None where that
    does not count. The losses are then a scalar, or `[K]` with 0 where nothing counts, and their graph is not kept either.
    `keep`: what stays in memory until the way back: "all" parameters and states, or of every sqrt(K)-th step, the others being
    computed again.
    `tasks`: True: every parameter is `[T, ...]`, and loss and outer give `[T]`, a task's from its own parameters alone. A number T: so
    many tasks start from the same parameters, `[...]`.
    `first_order`: the gradient of the loss counts as a constant.

    Gradients are exact and reach the initial parameters and state, the optimiser's numbers, every step's batch and all that `loss`,
    `outer` and `batches` close over, leaves and results, without being named. Random layers draw the same numbers again. Losses are
    compared on the way back: where one has changed, on a CPU, RuntimeError. Under create_graph=True, torch.func and forward-mode AD
    the loop is unrolled on a graph, which grows with the steps. A parameter that the loss does not reach has the gradient 0.

    Cost: the loss, its gradient and its Hessian-vector product each once a step, and loss and gradient once more on the way back;
    with "sqrt" twice more.

    Errors: TypeError and ValueError for wrong arguments; RuntimeError inside torch.inference_mode, for results that a loss keeps from one
    step for another, and where what it closes over cannot be found.

    Sources: Pearlmutter 1994, Neural Computation 6(1); Maclaurin et al. 2015, arXiv:1502.03492.

    ```python
    import torch
    import fastmeta

    net = torch.nn.Linear(3, 1)
    images = torch.randn(4, 3, requires_grad=True)  # are learned
    targets = torch.randn(4, 1)
    rate = torch.tensor(0.1, requires_grad=True)  # and so is the rate
    x, y = torch.randn(20, 3), torch.randn(20, 1)

    def outer(params):
        outputs = torch.func.functional_call(net, params, x)
        return torch.nn.functional.mse_loss(outputs, y)

    value, _ = fastmeta.unroll(
        (net, "mse"), net, (images, targets), steps=50,
        optimiser=fastmeta.SGD(rate, momentum=0.9), outer=outer,
    )
    value.backward()
    ```
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("unroll: must run outside torch.inference_mode, got a call inside; torch.no_grad is fine")
    loop, tree, items = loop_of(loss, params, batches, optimiser, state, steps, outer, keep, tasks, first_order)
    results = _run(loop, items)
    losses = len(loop.counted())
    after = results[losses:] if outer is not None else results[loop.params :]
    names = optimiser.names
    following: State = {"step": loop.before + loop.steps} | {
        name: tree.of(after[i :: len(names)]) for i, name in enumerate(names)
    }
    if outer is None:
        return tree.of(results[: loop.params]), following
    return (_in_order(loop, results[:losses]) if isinstance(outer, list | tuple) else results[0]), following


def _run(loop: Loop, items: list[Tensor]) -> list[Tensor]:
    if is_functional() or torch.compiler.is_compiling():
        return unrolled(loop, items)
    replay, with_gradients = Replay(items[0]), torch.is_grad_enabled()
    with torch.enable_grad():
        captured = Captured() if with_gradients else None
    with without_cache(autocast_of(items[0])):
        results, kept = Way(loop, items, replay, captured).down()
    inputs = [*items, *(captured.tensors if captured is not None else ())]
    if not with_gradients or not any(x.requires_grad for x in inputs):
        return results
    return list(Unrolled.apply(loop, replay, results, kept, len(items), *inputs))


def _in_order(loop: Loop, losses: Sequence[Tensor]) -> Tensor:
    """Of all steps, 0 where none counts."""
    found = [torch.zeros_like(losses[0])] * loop.steps
    for k, loss in zip(loop.counted(), losses, strict=True):
        found[k] = loss
    return torch.stack(found)

"""What a loss depends on beside its arguments: the tensors that it closes over, leaves and results, found in the graph that it leaves."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from .._torch import DispatchMode, LeafNode, has_gradient_hooks, number_of_node, tree_leaves, tree_map_only
from ..networks.chain import leaf

Place = tuple[Any, int]  # a node of autograd's graph, and which of its outputs
# The places that the loops around this one close over: on their way back, in a thread of autograd's, numbers of nodes tell nothing of them.
AROUND: ContextVar[frozenset[Place]] = ContextVar("AROUND", default=frozenset())
FUSED_ATTENTION = "ScaledDotProduct"  # how the names of its nodes begin


class Captured:
    """Of one `unroll`. A node that is older than the call belongs to a result that a loss closes over; the graph behind it is not the
    loop's. A leaf that is no argument is closed over as well."""

    def __init__(self) -> None:
        self.first = number_of_node(torch.zeros((), requires_grad=True).view(()).grad_fn)
        self.leaves: dict[int, Tensor] = {}
        self.results: dict[Place, Tensor] = {}
        self.silent = False

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.leaves.values(), *self.results.values()]

    def argument(self, x: Tensor, step: int, wants_gradient: bool) -> Tensor:
        """`x` as a leaf of the graph of a step."""
        found: Any = leaf(x, wants_gradient)
        if wants_gradient:
            found.of_step = self, step
        return found  # type: ignore[no-any-return]

    def look(self, total: Tensor, step: int, again: Callable[[], object], twice: bool) -> None:
        """Notes all that `total` reaches. `again` computes it once more: the tensors of nodes that are new are seen then. `twice`:
        whether it will be differentiated twice."""
        missing = {place for place in self._ends(total.grad_fn, step, twice) if place not in self.results}
        if not missing:
            return
        with Sought(missing) as sought:
            again()
        lost = missing - sought.found.keys()
        if lost:
            names = ", ".join(sorted({node.name() for node, _ in lost}))
            raise RuntimeError(
                f"unroll: what the loss closes over must reach torch's operators as it is, got the result of {names}, which no "
                "operator takes: pass it in the batch"
            )
        self.results |= sought.found

    def _ends(self, root: Any, step: int, twice: bool) -> set[Place]:
        """The places where the graph leaves the loop; leaves are noted."""
        ends: set[Place] = set()
        waiting, seen, around = [root], {None, root}, AROUND.get()
        while waiting:
            node = waiting.pop()
            if node is None:
                continue
            if twice and not self.silent and node.name().startswith(FUSED_ATTENTION):
                self._say_so()
            for following, number in node.next_functions:
                if following in seen:
                    continue
                if isinstance(following, LeafNode):
                    self._leaf(following.variable, step)
                elif number_of_node(following) < self.first or (following, number) in around:
                    ends.add((following, number))
                    continue
                seen.add(following)
                if not isinstance(following, LeafNode):
                    waiting.append(following)
        return ends

    def _leaf(self, x: Any, step: int) -> None:
        owner = getattr(x, "of_step", None)
        if owner is None or owner[0] is not self:
            self.leaves[id(x)] = x
        elif owner[1] != step:
            raise RuntimeError(
                f"unroll: loss must not keep results of one step for another, got one of step {owner[1]} in step {step}"
            )

    def _say_so(self) -> None:
        self.silent = True
        warnings.warn(
            "unroll: attention runs in its math form where it is differentiated twice, because torch's fused forms have no second "
            "derivative",
            stacklevel=2,
        )


class Sought(DispatchMode):
    """Sees the tensors at the places that are `missing`."""

    def __init__(self, missing: set[Place]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.missing, self.found = missing, dict[Place, Tensor]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and (place := (x.grad_fn, x.output_nr)) in self.missing:
                self.found[place] = x
        return func(*args, **(kwargs or {}))


class Standing(TorchFunctionMode):
    """Inside, `others` stand in for `tensors` wherever a function of torch takes them."""

    def __init__(self, tensors: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        super().__init__()
        self.others = {id(x): other for x, other in zip(tensors, others, strict=True)}
        self.nodes = {node_of(x) for x in tensors}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Tensor, lambda x: self.others.get(id(x), x), (args, kwargs or {}))
        return func(*args, **kwargs)

    def check(self, found: Sequence[Tensor], arguments: Sequence[Tensor] = ()) -> None:
        """RuntimeError where `found` reaches one of `tensors` all the same, but through the arguments or what stands in."""
        known = [node_of(x) for x in (*self.others.values(), *arguments) if x.requires_grad]
        if reaches([y.grad_fn for y in found], self.nodes, known):
            raise RuntimeError(
                "unroll: what the loss closes over must reach it by functions of torch where it has hooks, where one part of it is "
                "computed from another, or where a derivative of higher order is taken, got an op that takes it otherwise: pass it in "
                "the batch"
            )


@contextmanager
def around(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, loops know the places of what the loop around them closes over."""
    places = {(x.grad_fn, x.output_nr) for x in tensors if x.grad_fn is not None}
    before = AROUND.set(AROUND.get() | places)
    try:
        yield
    finally:
        AROUND.reset(before)


def must_stand_in(tensors: Sequence[Tensor], beside: Sequence[Tensor] = ()) -> bool:
    """Whether a partial derivative with respect to each of `tensors` cannot be had by asking autograd for it: one depends on another,
    or one in `beside` on it, so that autograd would give the whole one; or hooks would see each step's part."""
    if any(has_gradient_hooks(x) or x.retains_grad for x in tensors):
        return True
    nodes = {node_of(x) for x in tensors}
    behind = [following for x in tensors if x.grad_fn is not None for following, _ in x.grad_fn.next_functions]
    return reaches([*behind, *(node_of(x) for x in beside if x.requires_grad)], nodes)


def reaches(roots: Iterable[Any], nodes: set[Any], without: Iterable[Any] = ()) -> bool:
    """Whether autograd comes from the roots to one of the nodes, past none of `without`."""
    waiting, seen = list(roots), {None, *without}
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        if node in nodes:
            return True
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return False


def node_of(x: Tensor) -> Any:
    """Where autograd delivers the gradient of `x`."""
    return get_gradient_edge(x).node

"""The blocks of convolutional networks among layers, and what an encoder does after them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from .._torch import AnyConv
from ..types import ConvBlock
from .batch_norm import has_running_statistics
from .fused import parameters_of
from .layers import INPUT, Graph, is_rows
from .program import Step, place_of
from .stand_ins import Value

MOST_PADDING = 2  # that the native kernels take


class Block(NamedTuple):
    fields: ConvBlock
    conv: nn.Conv2d
    norm: Any  # or None


def conv_block(layers: Sequence[Any], encodes: bool = False) -> tuple[ConvBlock | None, list[Tensor | None], int]:
    """The block that the layers begin with, its parameters, and how many layers it is. `encodes`: of an encoder, with 1 x 1 kernels and
    leaky ReLU."""
    conv, used = layers[0], 1
    padding, stride, kernel = conv.padding, conv.stride, conv.kernel_size
    plain = (conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), 1, "zeros")
    if not plain or isinstance(padding, str) or len({*padding}) > 1 or len({*stride}) > 1:
        return None, [], 0
    side = kernel[0]
    known = kernel in ((3, 3), (1, 1)) if encodes else side == kernel[1] and padding[0] < min(side, MOST_PADDING + 1)
    if not known or (encodes and side == 1 and padding != (0, 0)):
        return None, [], 0
    kinds = [type(m) for m in layers]
    norm: str | int | None = None
    of_norm: list[Tensor | None] = [None, None]
    eps = 1e-5
    if kinds[used : used + 1] in ([nn.BatchNorm2d], [nn.GroupNorm]):
        layer = layers[used]
        norm = "batch" if type(layer) is nn.BatchNorm2d else layer.num_groups
        eps, of_norm, used = layer.eps, parameters_of(layer), used + 1
    after, more = relu_and_pool(layers[used:], encodes)
    block = ConvBlock(stride[0], padding[0], norm, eps, kernel=side)._replace(**after)
    return block, [*parameters_of(conv), *of_norm], used + more


def linear_block(layers: Sequence[Any], channels: int | None) -> tuple[ConvBlock, list[Tensor | None], int] | None:
    """The same of a linear layer, which takes images of so many channels; None: a row."""
    linear, used = layers[0], 1
    if type(linear) is not nn.Linear:
        return None
    side = 1 if channels is None else math.isqrt(linear.in_features // channels)
    if channels is not None and channels * side * side != linear.in_features:
        return None
    norm: str | int | None = None
    of_norm: list[Tensor | None] = [None, None]
    eps, layer = 1e-5, layers[1]
    if type(layer) is nn.BatchNorm1d and not has_running_statistics(layer):
        norm = "batch"
    elif type(layer) is nn.LayerNorm and layer.normalized_shape == (linear.out_features,):
        norm = 1
    if norm is not None:
        eps, of_norm, used = layer.eps, parameters_of(layer), 2
    relu = len(layers) > used and type(layers[used]) is nn.ReLU
    block = ConvBlock(1, 0, norm, eps, relu, 1, kernel=side)
    return block, [*parameters_of(linear), *of_norm], used + relu


def relu_and_pool(layers: Sequence[Any], encodes: bool) -> tuple[dict[str, Any], int]:
    """What a block has of them, and how many layers they are."""
    found: dict[str, Any] = {"relu": False, "pool": 1}
    used = 0
    if layers and type(layers[0]) is nn.ReLU:
        found["relu"], used = True, 1
    elif layers and type(layers[0]) is nn.LeakyReLU and encodes and 0 <= layers[0].negative_slope < 1:
        found |= {"relu": True, "slope": float(layers[0].negative_slope)}
        used = 1
    side = _pool_side(layers[used]) if len(layers) > used and type(layers[used]) is nn.MaxPool2d else None
    return (found, used) if side is None else (found | {"pool": side}, used + 1)


def _pool_side(pool: nn.MaxPool2d) -> int | None:
    """Of windows of 1 or 2 that do not overlap."""
    for side in (1, 2):
        sizes = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        if all(s in (value, (value, value)) for s, value in zip(sizes, (side, side, 0, 1), strict=True)):
            return None if pool.ceil_mode or pool.return_indices else side
    return None


def blocks_of(graph: Graph) -> tuple[list[Block], int, set[int]]:
    """The blocks that an encoder begins with, the place of what they hand on, and the places of all that they are."""
    blocks: list[Block] = []
    place, taken = INPUT, set[int]()
    while True:
        users = graph.users[place]
        found = None
        if len(users) == 1:
            found = _next_block(graph.run(users[0]))
        elif len(users) == 2:
            found = _residual(graph, *users)
        if found is None:
            return blocks, place, taken
        more, places = found
        blocks += more
        taken |= {*places}
        place = places[-1]


def _next_block(run: Sequence[tuple[int, Any]]) -> tuple[list[Block], list[int]] | None:
    layers = [layer for _, layer in run]
    if not layers or type(layers[0]) is not nn.Conv2d:
        return None
    fields, _, used = conv_block(layers, encodes=True)
    if fields is None:
        return None
    block = Block(fields, layers[0], layers[1] if fields.norm is not None else None)
    return [block], [place for place, _ in run[:used]]


def _path(graph: Graph, place: int) -> tuple[list[Block], list[int]] | None:
    """Blocks from `place` to where two paths meet, the last without ReLU and pool."""
    run, blocks, places = graph.run(place), list[Block](), list[int]()
    while run:
        found = _next_block(run)
        if found is None:
            return None
        blocks += found[0]
        places += found[1]
        run = run[len(found[1]) :]
    return (blocks, places) if blocks and not blocks[-1].fields.relu and blocks[-1].fields.pool == 1 else None


def _residual(graph: Graph, first: int, second: int) -> tuple[list[Block], list[int]] | None:
    """Two paths from one place to an addition, one of them a single block: the shortcut."""
    paths = _path(graph, first), _path(graph, second)
    if first == second or paths[0] is None or paths[1] is None:
        return None
    (shortcut, its_places), (main, places) = sorted((paths[0], paths[1]), key=lambda path: len(path[0]))
    ends = {its_places[-1], places[-1]}
    meets = graph.users[places[-1]]
    if len(shortcut) > 1 or len(main) < 2 or len(meets) != 1 or graph.users[its_places[-1]] != meets:
        return None
    (added,) = meets
    if not graph.nodes[added].adds or {*graph.nodes[added].inputs} != ends:
        return None
    run = graph.run(graph.users[added][0]) if len(graph.users[added]) == 1 else []
    after, used = relu_and_pool([layer for _, layer in run], encodes=True)
    (fields, conv, norm), *_ = shortcut
    last = Block(fields._replace(skip=len(main), **after), conv, norm)
    return [*main, last], [*its_places, *places, added, *(place for place, _ in run[:used])]


class Place(int):
    """Of what stands for a tensor or a number."""


class Rest:
    """The steps after the blocks, as they are, on what these hand on."""

    def __init__(self, graph: Graph, start: int, taken: set[int]) -> None:
        """`sound`: whether they need nothing else, and no convolution is among them."""
        self.graph, self.start, self.taken = graph, start, taken
        self.end = graph.end
        self.steps: list[tuple[int, Any, Any, Any]] = []
        self.nodes = [place for place in graph.nodes if place not in taken]
        layers = [graph.steps[place].layer for place in self.nodes]
        self.sound = not any(isinstance(layer, AnyConv) for layer in layers)
        for place in self.nodes if self.sound else ():
            step = graph.steps[place]
            self._add(place, step)
        del self.graph

    def _add(self, place: int, step: Step) -> None:
        args, kwargs = self._moved(step.args), self._moved(step.kwargs)
        self.steps.append((place, step.call, args, kwargs))

    def _moved(self, x: Any) -> Any:
        """With places instead of values."""
        if type(x) is dict:
            return {name: self._moved(item) for name, item in x.items()}
        if type(x) in (tuple, list):
            return type(x)(map(self._moved, x))
        if type(x) is not Value:
            return x
        place, steps = place_of(x), self.graph.steps
        if place >= 0 and steps[place].call is Tensor.size:
            return self._size(x, place, steps)
        place = self.graph.same[place]
        self.sound = self.sound and (place == self.start or (place != INPUT and place not in self.taken))
        return Place(place)

    def _size(self, x: Value, place: int, steps: Sequence[Step]) -> Any:
        (of, *dim), kwargs = steps[place].args, steps[place].kwargs
        of = Place(self.graph.same[place_of(of)])
        if of == INPUT or of in self.taken:
            self.sound = self.sound and is_rows(x, steps)
            of = Place(self.start)
        if all(p != place for p, *_ in self.steps):
            self.steps.append((place, Tensor.size, (of, *dim), kwargs))
        return Place(place)

    def __call__(self, x: Tensor) -> Tensor:
        values: dict[int, Any] = {self.start: x}
        for place, call, args, kwargs in self.steps:
            values[place] = call(*_filled(args, values), **_filled(kwargs, values))
        found: Tensor = values[self.end]  # type: ignore[index]
        return found


def _filled(x: Any, values: dict[int, Any]) -> Any:
    if type(x) is Place:
        return values[x]
    if type(x) is dict:
        return {name: _filled(item, values) for name, item in x.items()}
    return type(x)(_filled(item, values) for item in x) if type(x) in (tuple, list) else x

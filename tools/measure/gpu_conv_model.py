"""The model of gpu_model for conv_meta_loss layer by layer (csrc/inner/cuda/conv_layers.h): what each launch multiplies and moves.

Ours: products in tiles of TILE columns and TILE rows, or LOW where half of the last would be empty; pixels of an image in slices of 16 for
gradients to kernels. Each factor and result crosses HBM once a launch, and what a product's epilogue reads for the sums of a norm. So a
norm's kernel reads, forward, where windows were won, and back z once, or in the last block, whose sums no product leaves, twice. Theirs:
each product unpadded, and one kernel for the elementwise work that follows it, which moves its result twice; for a norm one more, which
reads it once. Their products are those of reverse mode, of the inner steps three times: once, and once more for either factor.
"""

import math
from typing import NamedTuple

from measure.gpu_model import LAUNCH, TILE

SLICE, LOW, MOST_KEPT = 16, 32, 8 << 30


class Conv(NamedTuple):
    """conv_meta_loss with its gradients to the parameters of T tasks: blocks of 3 x 3, padding 1, batch norm with bias and affine, ReLU,
    pool 2; one rate that is a number."""

    channels: int
    inputs: int
    size: int
    ways: int
    T: int
    S: int
    Q: int
    steps: int
    blocks: int = 4

    @property
    def widths(self):  # as an Mlp's, of the linear layer
        return self.channels * (self.size >> self.blocks) ** 2, self.ways

    def sides(self):
        return [self.size >> i for i in range(self.blocks)]

    def ins(self):
        return [self.inputs, *[self.channels] * (self.blocks - 1)]

    @property
    def params(self):
        return sum(9 * i * self.channels + 3 * self.channels for i in self.ins()) + (self.widths[0] + 1) * self.ways


def launches(card, p):
    """Of one call with its gradients: of a pass and of a link of the chain as many; over the tasks."""
    of_pass = 2 * p.blocks + 1 + (2 * p.blocks - 1) + 2
    assert p.steps * _kept(p, p.S) + _kept(p, max(p.S, p.Q)) <= MOST_KEPT, "steps would be found again"
    return (2 * p.steps + 1) * of_pass + 1


def seconds(card, p, way="graph"):
    """Of ours."""
    of_launches = [*_pass(p, p.Q), *[*_pass(p, p.S), *_pass(p, p.S, tangents=True)] * p.steps]
    return launches(card, p) * LAUNCH[way] + sum(max(f / card.peak, b / card.bandwidth) for f, b in of_launches)


def floor(card, p):
    """Seconds of all products unpadded, and of all that moves."""
    of_launches = [*_pass(p, p.Q, tile=1), *[*_pass(p, p.S, tile=1), *_pass(p, p.S, tile=1, tangents=True)] * p.steps]
    return sum(f for f, _ in of_launches) / card.peak, sum(b for _, b in of_launches) / card.bandwidth


def others(card, p, way="graph"):
    """(kernels, seconds) of the best of theirs."""
    kernels = time = 0.0
    for n, times in ((p.S, 3 * p.steps), (p.Q, 1)):  # a step, and its products again for either factor
        for into, side in zip(p.ins(), p.sides(), strict=True):
            x, z = n * into * side**2, n * p.channels * side**2
            products = 3 if into != p.inputs else 2  # none to the examples
            flops, moved = 2 * 9 * into * z, 4 * p.T * (x + z)
            kernels += times * (2 * products + 2)
            time += (
                times * products * (max(p.T * flops / card.peak, moved / card.bandwidth) + 8 * p.T * z / card.bandwidth)
            )
            time += times * 2 * 4 * p.T * z / card.bandwidth  # statistics, forward and back
        kernels += times * 6
    return round(kernels), kernels * LAUNCH[way] + time


def _kept(p, n):
    """Bytes of a pass: z and dz; x, d and z where windows were won."""
    return sum(4 * p.T * n * p.channels * (2 * side**2 + 3 * (side // 2) ** 2) for side in p.sides())


def _up(count, tile):
    return math.ceil(count / tile) * tile


def _rows(count, tile):
    """Of tiles that hold so many."""
    return _up(count, LOW if tile > 1 and (count - 1) % TILE < LOW else tile)


def _pass(p, n, tile=TILE, tangents=False):
    """(flops, bytes) of the launches of a forward and a backward pass over n images of each task, or of their tangents."""
    found, weights, twice = [], [0.0, 0.0], 1 + tangents
    for block, (into, side) in enumerate(zip(p.ins(), p.sides(), strict=True)):
        pixels, x, z = side**2, n * into * side**2, n * p.channels * side**2
        handed_on = n * p.channels * (side // 2) ** 2
        pieces = twice if block else 1  # images have no tangent
        moved = pieces * x + twice * z + handed_on
        by_window = 2 * p.T * 9 * _up(n * _up(pixels, 4 if tile > 1 else 1), tile)
        found += [(pieces * by_window * into * _rows(p.channels, tile), 4 * p.T * moved)]
        found += [(0, 4 * p.T * (1 + twice) * handed_on)]
        again = twice * (z + handed_on) if block == p.blocks - 1 else 0
        found += [(0, 4 * p.T * (again + twice * (2 * z + handed_on)))]
        if block:
            moved = twice * z + (4 if tangents else 2) * x
            product = 2 * p.T * 9 * _up(n * pixels, tile)
            found += [(twice * product * p.channels * _rows(into, tile), 4 * p.T * moved)]
        columns = n * (_up(pixels, SLICE) if tile > 1 else pixels)
        weights[0] += pieces * 2 * p.T * _rows(p.channels, tile) * _up(9 * into, tile) * columns
        weights[1] += 4 * p.T * pieces * (x + z)
    features, ways = p.widths
    head = 2 * p.T * n * features * ways * twice
    return [*found, (2 * head, 8 * p.T * n * features * twice), tuple(weights), (head, 8 * p.T * p.params)]

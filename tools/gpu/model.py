"""How long our kernels should take on a GPU, by what they move and compute: a prediction to hold the first measurement against.

One launch takes LATENCY (eager, in a graph) + max(bytes / HBM bandwidth, flops / peak); flops counts 2 for an instruction,
whether it multiplies and adds or only subtracts; the peak is that of float32 without tensor cores, or of TF32.

The mlp kernels give a block to a task. The multiprocessor with most tasks has q = ceil(T / M) of T, and takes, beside HBM,
    q / T * max(flops / (peak / M), shared bytes / (128 B * clock)) + ceil(q / resident) * phases * PHASE / clock:
its arithmetic and its shared memory, both of all its blocks together, and the barriers, which blocks on it at one time wait for
side by side. A product moves 1 byte of shared memory a flop: 2 floats feed T = 4 multiply-adds of a T x T tile. What each op
launches, and with what numbers, is in counts.py.

Left out: what a cache saves, what a part-filled block wastes, instructions other than loads, products and sums, the host.
"""

import math
from typing import NamedTuple

LATENCY = {"eager": 3e-6, "graph": 1.5e-6}  # s a launch
PHASE = 200  # cycles of a phase with no work: a division for indices, a load, a store, a barrier
SHARED_RATE = 128  # bytes a cycle of one multiprocessor


class Card(NamedTuple):
    multiprocessors: int
    clock: float  # Hz
    bandwidth: float  # bytes of HBM a second
    peak: float  # flop a second, float32 without tensor cores
    tf32: float
    shared: int  # bytes of one block, at most


CARDS = {
    "A100": Card(108, 1.41e9, 2.04e12, 19.5e12, 156e12, 163 * 1024),
    "H100": Card(132, 1.98e9, 3.35e12, 66.9e12, 495e12, 227 * 1024),
    "B200": Card(148, 1.97e9, 8.0e12, 74.4e12, 1100e12, 227 * 1024),
}


class Launch(NamedTuple):
    """`count` launches with these sums; `tasks` where each has a block of its own, which waits in `phases` phases."""

    name: str
    bytes: float  # from and to HBM
    flops: float = 0
    count: int = 1
    tasks: int = 0
    phases: int = 0
    resident: int = 1
    tensor_cores: bool = False


class Tasks(NamedTuple):
    """A kernel with a block for each task; `working_set`: bytes of one. `layered`: what runs where that does not fit."""

    block: Launch
    working_set: int
    layered: Launch


def launches_on(card, kernels):
    """For each kernel the launches that this card makes of it."""
    return [k if isinstance(k, Launch) else k.block if k.working_set <= card.shared else k.layered for k in kernels]


def seconds(card, kernels, way):
    """`way`: "eager" or "graph"."""
    return sum(_seconds(card, launch) + launch.count * LATENCY[way] for launch in launches_on(card, kernels))


def _seconds(card, launch):
    memory = launch.bytes / card.bandwidth
    compute = launch.flops / (card.tf32 if launch.tensor_cores else card.peak)
    if not launch.tasks:
        return max(memory, compute)
    most = math.ceil(launch.tasks / card.multiprocessors)
    share = most / launch.tasks * card.multiprocessors  # 1 where all have the same number of tasks
    shared = launch.flops / (SHARED_RATE * card.clock * card.multiprocessors)
    waiting = math.ceil(most / launch.resident) * launch.phases * PHASE / card.clock
    return max(memory, share * max(compute, shared) + waiting)


def card_like(name):
    """The card of this name, or None."""
    return next((card for known, card in CARDS.items() if known in name), None)

"""How long an all-reduce takes on many GPUs, by rings and by trees: the smaller of the two.

The model and the latencies are those of NCCL's tuner (NVIDIA/nccl, src/graph/tuning.cc at 01afd20), protocol LL128: R ranks in
N nodes, ring of 2 (R - 1) steps, of which 2 (N - 1) between nodes; tree up and down again, a chain within a node and log2 N
levels between them. A ring moves 2 (R - 1) / R of the bytes through each rank, a tree all of them twice; 8 of 128 bytes are flags.
"""

import math
from typing import NamedTuple


class Network(NamedTuple):
    per_node: int
    links: float  # bytes a second of one GPU to the others of its node, one direction
    node: float  # bytes a second of one node to others, one direction
    ring: tuple[float, float, float]  # s: of a call, of a step within a node, of one between nodes
    tree: tuple[float, float, float]
    payload: float = 120 / 128


# DGX H100 (its data sheet): NVLink 900 GB/s in both directions together, 8 adapters of 400 Gb/s for 8 GPUs
DGX_H100 = Network(8, 450e9, 8 * 50e9, ring=(10.0e-6, 1.9e-6, 4.0e-6), tree=(4.4e-6, 1.2e-6, 8.5e-6))


def all_reduce(size, ranks, network=DGX_H100):
    """Seconds for `size` bytes on each rank; none for one rank."""
    return min(ring(size, ranks, network), tree(size, ranks, network)) if ranks > 1 else 0.0


def ring(size, ranks, network):
    call, within, between = network.ring
    crossings = 2 * (_nodes(ranks, network) - 1)
    steps = 2 * (ranks - 1)
    return call + (steps - crossings) * within + crossings * between + steps / ranks * size / _rate(ranks, network)


def tree(size, ranks, network):
    call, within, between = network.tree
    nodes = _nodes(ranks, network)
    levels = math.ceil(math.log2(nodes))
    return (
        call + 2 * ((min(ranks, network.per_node) - 1) * within + levels * between) + 2 * size / _rate(ranks, network)
    )


def _nodes(ranks, network):
    return math.ceil(ranks / network.per_node)


def _rate(ranks, network):
    """Of what every rank sends: a node's adapters take the rings, or trees, of all its GPUs side by side."""
    slowest = network.links if ranks <= network.per_node else min(network.links, network.node)
    return slowest * network.payload

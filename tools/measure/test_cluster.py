"""The simulation of bench/cluster.py and the all-reduces of bench/network.py, against closed forms in limits."""

import math
import statistics

import pytest
import torch
from bench_learners import Images, net
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from measure import cluster, flops, network
from measure.resnet12 import WIDTHS, resnet12

NET = network.DGX_H100
WORKLOAD = cluster.Workload(30_000_000, cluster.linear(1e-3, 2e-3))
RANKS = [2, 8, 9, 64, 4096]


def without_latency(net):
    return net._replace(ring=(0, 0, 0), tree=(0, 0, 0))


def of_any_rate(net):
    return net._replace(links=math.inf, node=math.inf)


@pytest.mark.parametrize("overlap", [0, 0.5, 1])
def test_one_rank_only_computes(overlap):
    workload = WORKLOAD._replace(overlap=overlap)
    assert cluster.simulate(workload, 5, 1) == pytest.approx(1e-3 + 5 * 2e-3, rel=1e-12)
    assert cluster.weak(workload, 5, 1) == cluster.strong(workload, 5, 1) == 1


@pytest.mark.parametrize("ranks", RANKS)
def test_bytes_over_bandwidth_where_there_is_no_latency(ranks):
    """All but 1 / R of the bytes there and back, through the slowest link."""
    rate = (450e9 if ranks <= 8 else 400e9) * 120 / 128
    expected = 2 * (ranks - 1) / ranks * 1e9 / rate
    assert network.all_reduce(1e9, ranks, without_latency(NET)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("ranks", "within", "between", "levels"), [(2, 2, 0, 0), (8, 14, 0, 0), (16, 28, 2, 1), (4096, 7168, 1022, 9)]
)
def test_steps_where_the_bandwidth_is_infinite(ranks, within, between, levels):
    ring = 10e-6 + within * 1.9e-6 + between * 4e-6
    tree = 4.4e-6 + 2 * (min(ranks, 8) - 1) * 1.2e-6 + 2 * levels * 8.5e-6
    assert network.ring(1e9, ranks, of_any_rate(NET)) == pytest.approx(ring, rel=1e-12)
    assert network.tree(1e9, ranks, of_any_rate(NET)) == pytest.approx(tree, rel=1e-12)
    assert network.all_reduce(1e9, ranks, of_any_rate(NET)) == pytest.approx(min(ring, tree), rel=1e-12)


def test_small_messages_go_by_trees_and_large_ones_by_rings():
    assert network.all_reduce(1e3, 64) == network.tree(1e3, 64, NET) < network.ring(1e3, 64, NET)
    assert network.all_reduce(1e10, 64) == network.ring(1e10, 64, NET) < network.tree(1e10, 64, NET)


@given(st.integers(1, 10**9))
def test_buckets_hold_all_bytes(size):
    sizes = cluster.buckets(size)
    assert sum(sizes) == size and min(sizes) > 0
    assert sizes[0] <= 2**20 and max(sizes) <= 25 * 2**20 and all(s == 25 * 2**20 for s in sizes[1:-1])


@pytest.mark.parametrize("ranks", RANKS)
def test_without_overlap_the_buckets_follow_the_computation(ranks):
    sent = sum(network.all_reduce(size, ranks) for size in cluster.buckets(4 * 30_000_000))
    assert cluster.simulate(WORKLOAD, 3 * ranks, ranks) == pytest.approx(1e-3 + 3 * 2e-3 + sent, rel=1e-12)


@pytest.mark.parametrize("ranks", RANKS)
def test_with_overlap_only_the_last_bucket_follows(ranks):
    """Where a bucket takes less time on the network than the next one in the computation."""
    workload = WORKLOAD._replace(overlap=1, compute=cluster.linear(1e-3, 1.0))
    last = network.all_reduce(cluster.buckets(workload.size)[-1], ranks)
    assert cluster.simulate(workload, ranks, ranks) == pytest.approx(1e-3 + 1.0 + last, rel=1e-12)


def test_a_network_slower_than_the_computation_is_busy_from_the_first_bucket_on():
    """Four buckets that fill at 1, 2, 3, 4 s and take 10 s each."""
    assert cluster.meta_iteration([4.0, 3.0], [1, 1, 1, 1], 1, lambda size: 10.0 * size) == 1 + 4 * 10


def test_a_bucket_waits_for_the_last_rank():
    assert cluster.meta_iteration([1.0, 7.0, 2.0], [3], 0, lambda size: float(size)) == 7 + 3


def test_the_mean_of_the_maximum_of_draws():
    """Of two draws of 0 or 1: 3/4. Of one: the mean."""
    assert cluster.expected_maximum([1, 0], 2) == 0.75
    assert cluster.expected_maximum([5, 1, 3], 1) == pytest.approx(3)


@pytest.mark.parametrize("ranks", [2, 16, 64])
def test_stragglers_cost_the_mean_of_the_maximum(ranks):
    spread = [1.0] * 19 + [1.5]
    workload = WORKLOAD._replace(parameters=0, compute=cluster.linear(0.0, 1.0))
    found = cluster.simulate(workload, ranks, ranks, spread, iterations=2000, net=of_any_rate(without_latency(NET)))
    expected = cluster.expected_maximum(spread, ranks)
    assert found == pytest.approx(expected, abs=4 * 0.25 / 2000**0.5)  # 0.25: no deviation of 1 or 1.5 is larger


def test_weak_scaling_falls_with_the_network_and_the_stragglers_only():
    assert cluster.weak(WORKLOAD, 4, 64, [1.0]) < 1
    free = WORKLOAD._replace(parameters=0)
    assert cluster.simulate(free, 4 * 64, 64, net=of_any_rate(without_latency(NET))) == free.compute(4)


def test_strong_scaling_ends_where_tasks_do():
    """More ranks than tasks take as long as one rank a task, with only a larger all-reduce."""
    net = of_any_rate(without_latency(NET))
    assert (
        cluster.simulate(WORKLOAD, 16, 16, net=net)
        == cluster.simulate(WORKLOAD, 16, 64, net=net)
        == WORKLOAD.compute(1)
    )


def test_uneven_shares_differ_by_one_task():
    net = of_any_rate(without_latency(NET))
    assert cluster.simulate(WORKLOAD, 17, 4, net=net) == pytest.approx(WORKLOAD.compute(5), rel=1e-12)


def test_the_draws_are_those_of_the_number_of_ranks():
    spread = [1.0, 1.1, 1.3]
    assert cluster.weak(WORKLOAD, 4, 8, spread) == cluster.weak(WORKLOAD, 4, 8, spread)
    assert statistics.fmean(spread) * 0.9 < cluster.simulate(WORKLOAD, 4, 1, spread) / WORKLOAD.compute(4) < 1.3


@pytest.mark.parametrize("name", ["conv4", "resnet12"])
def test_flops_of_a_network_are_torchs(name):
    """Forward, and backward to all parameters but not to the inputs."""
    if name == "conv4":
        model, x = net(Images(width=8, channels=3, side=32)), torch.randn(5, 3, 32, 32)
        expected = flops.conv4(8, 3, 32, 5, 5)
    else:
        model, x = resnet12(), torch.randn(2, 3, 32, 32)
        expected = flops.resnet12(WIDTHS, 3, 32, 2)
    with FlopCounterMode(display=False) as forward:
        y = model(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert forward.get_total_flops() == expected[0]
    assert forward.get_total_flops() + backward.get_total_flops() == flops.gradients(*expected)

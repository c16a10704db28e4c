"""Benches: every contender's result is checked, then all contenders of a group are timed in turns; a table ends the run."""

import itertools
import math
import statistics
import time
from collections import defaultdict

import pytest
import roofline
import torch

import fastmeta
from fastmeta._dispatch import tensors_of

TURN = 3e-3  # s, at least: a contender calls as often as that takes
BUDGET = 1.5  # s for a group
MIN_ROUNDS, MAX_ROUNDS = 15, 500
MEMORY = pytest.StashKey[dict]()
SLOW = 0.05  # s: from here on a contender runs in every third round


def synchronised() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def pytest_addoption(parser):
    parser.addoption("--no-compile", action="store_true", help="leave out what compiles first (torch.compile, KeOps)")


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=synchronised))


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.update(torch=torch.__version__, fastmeta=fastmeta.__version__)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def race(request, benchmark):
    """race(group, contenders): check that each of `contenders` agrees with contenders["reference"], then time them in turns.

    `compiled` names further contenders, which take seconds to make: only where there is something to time. `truth` stands in
    for a reference that is too large to run. `floor` is the (bytes, flops) that no way can do without.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    torch.manual_seed(0)

    def run(group, contenders, compiled=None, truth=None, floor=None):
        torch._dynamo.reset()  # each group has its own specialisations
        if benchmark.enabled and not request.config.getoption("no_compile"):
            contenders = contenders | (compiled or {})
        expected = tensors_of((truth or contenders["reference"])())
        for name, fn in contenders.items():
            for found, right in zip(tensors_of(fn()), expected, strict=True):
                error, size = (found - right).norm(), right.norm()
                assert found.shape == right.shape and error <= 1e-3 * size, f"{name}: error {error}, norm {size}"
        if not benchmark.enabled:
            benchmark(contenders["ext"])
            return
        benchmark.group = request.function.__name__
        benchmark.extra_info.update(workload=group, threads=request.param)
        if floor:
            benchmark.extra_info["floor"] = roofline.floor(*floor, request.param)
        seconds = {name: _seconds(fn) for name, fn in contenders.items()}
        calls = {name: math.ceil(TURN / s) for name, s in seconds.items()}
        every = {name: 3 if s > SLOW else 1 for name, s in seconds.items()}
        cost = sum(s * calls[name] / every[name] for name, s in seconds.items())
        rounds = min(max(MIN_ROUNDS, int(BUDGET / cost)), MAX_ROUNDS)
        times = {name: [] for name in contenders if name != "ext"}
        turns = itertools.count()

        def the_others():
            turn = next(turns)
            for name, of_turns in times.items():
                if turn % every[name] == 0:
                    contenders[name]()  # brings its own memory back into cache
                    of_turns.append(_per_call(contenders[name], calls[name]))
            contenders["ext"]()

        benchmark.pedantic(contenders["ext"], teardown=the_others, rounds=rounds, iterations=calls["ext"])
        benchmark.extra_info["others"] = {name: statistics.median(of_turns) for name, of_turns in times.items()}

    with fastmeta.backend("ext"):
        yield run
    torch.set_num_threads(before)


@pytest.fixture
def memory(request):
    """memory(workload, peaks): a row of the table of peak memory, {name: KiB}."""
    return request.config.stash.setdefault(MEMORY, {}).__setitem__


def _seconds(fn):
    """A rough time of one call, after the check's."""
    first = _per_call(fn, 1)
    return first if first > SLOW else min(_per_call(fn, 1) for _ in range(3))


def _per_call(fn, calls):
    start = synchronised()
    for _ in range(calls):
        fn()
    return (synchronised() - start) / calls


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter, config):
    yield
    if memory := config.stash.get(MEMORY, {}):
        terminalreporter.section("peak memory on top of the inputs, MiB (gradients included)")
    for workload, peaks in memory.items():
        row = "   ".join(f"{name} {kib / 1024:.1f}" for name, kib in peaks.items())
        terminalreporter.write_line(f"{workload:<52}{row}")
    session = getattr(config, "_benchmarksession", None)
    workloads = defaultdict(list)
    for bench in session.benchmarks if session else []:
        if not bench.has_error and "others" in bench.extra_info:
            workloads[bench.extra_info["workload"]].append((bench.stats.median, bench.extra_info))
    if not workloads:
        return
    terminalreporter.section("fastmeta (ext), medians, and how many times longer each other way takes")
    for workload, rows in workloads.items():
        terminalreporter.write_line(workload)
        for ours, info in rows:
            terminalreporter.write_line("  " + _row(ours, **info))


def _row(ours, threads, others, floor=None, **_):
    ratios = sorted((seconds / ours, name) for name, seconds in others.items())
    (ratio, fastest), *rest = ratios
    of_floor = f"{ours / floor:.2f}x the floor" if floor else ""
    return (
        f"{threads} thread{'s' if threads > 1 else ' '} {ours * 1e6:10.1f} us {of_floor:>17}"
        f"   fastest other way: {fastest} {ratio:.2f}x" + "".join(f"   {name} {ratio:.2f}x" for ratio, name in rest)
    )

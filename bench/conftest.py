"""Benches: every contender's result is checked before it is timed; a table of ratios ends the run."""

import time
from collections import defaultdict

import pytest
import torch

import fastmeta
from fastmeta._dispatch import tensors_of


def synchronised() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=synchronised, warmup=True, min_rounds=15, max_time=0.5))


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.update(torch=torch.__version__, fastmeta=fastmeta.__version__, threads=torch.get_num_threads())


@pytest.fixture
def race(benchmark):
    """race(group, contenders, name): check that contenders[name]() agrees with contenders["reference"](), then time it."""

    def run(group, contenders, name):
        torch.manual_seed(0)
        torch.testing.assert_close(
            tensors_of(contenders[name]()), tensors_of(contenders["reference"]()), rtol=2e-3, atol=2e-4
        )
        benchmark.group = group
        benchmark.extra_info.update(contender=name, threads=torch.get_num_threads())
        benchmark(contenders[name])

    return run


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter, config):
    yield
    session = getattr(config, "_benchmarksession", None)
    groups = defaultdict(dict)
    for bench in session.benchmarks if session else []:
        if not bench.has_error and bench.stats.rounds:
            groups[bench.group][bench.extra_info["contender"]] = bench.stats.median
    if not groups:
        return
    terminalreporter.section("speed-up of fastmeta (ext) over each other way, medians")
    for group, medians in groups.items():
        ours = medians.get("ext")
        if ours is None:
            continue
        ratios = "   ".join(f"{name} {median / ours:6.2f}x" for name, median in medians.items() if name != "ext")
        terminalreporter.write_line(f"{group:<58} {ours * 1e6:10.1f} us   {ratios}")

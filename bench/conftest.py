"""Benches: every contender's result is checked, then all contenders of a group are timed in turns; a table ends the run."""

import itertools
import statistics
from collections import defaultdict

import peers
import pytest
import roofline
import torch
from timing import disagreement, per_call, synchronised, turns_of

import fastmeta

TABLES = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption("--no-compile", action="store_true", help="leave out what compiles first (torch.compile, KeOps)")


def pytest_report_header():
    if absent := peers.missing():
        return f"libraries that do not race, not installed: {', '.join(absent)}"


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=synchronised))


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.update(torch=torch.__version__, fastmeta=fastmeta.__version__)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def race(request, benchmark):
    """race(group, contenders): check that each of `contenders` agrees with contenders["reference"], then time them in turns.

    `also` names other ways through fastmeta, which get rows of their own. `compiled` names further contenders, which take
    seconds to make: only where there is something to time. `truth` stands in for a reference that is too large to run. `floor`
    is the (bytes, flops) that no way can do without. `launches`, those of our kernels on a GPU, are for bench/gpu.py.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # for what is true
    torch.manual_seed(0)

    def run(group, contenders, also=None, compiled=None, truth=None, floor=None, launches=None):
        torch._dynamo.reset()  # each group has its own specialisations
        also = also or {}
        expected = (truth or contenders["reference"])()
        torch.set_num_threads(request.param)
        contenders = contenders | also
        if not benchmark.enabled and request.param > 1:  # the others have been checked on one thread
            contenders = {name: fn for name, fn in contenders.items() if name in ("ext", *also)}
        elif benchmark.enabled and not request.config.getoption("no_compile"):
            contenders = contenders | (compiled or {})
        for name, fn in contenders.items():
            wrong = disagreement(fn(), expected)
            assert wrong is None, f"{name}: {wrong}"
        if not benchmark.enabled:
            benchmark(contenders["ext"])
            return
        benchmark.group = request.function.__name__
        benchmark.extra_info.update(workload=group, threads=request.param)
        if floor:
            benchmark.extra_info["floor"] = roofline.floor(*floor, request.param)
        calls, every, rounds = turns_of(contenders)
        times = {name: [] for name in contenders if name != "ext"}
        turns = itertools.count()

        def the_others():
            turn = next(turns)
            for name, of_turns in times.items():
                if turn % every[name] == 0:
                    contenders[name]()  # brings its own memory back into cache
                    of_turns.append(per_call(contenders[name], calls[name]))
            contenders["ext"]()

        benchmark.pedantic(contenders["ext"], teardown=the_others, rounds=rounds, iterations=calls["ext"])
        medians = {name: statistics.median(of_turns) for name, of_turns in times.items()}
        benchmark.extra_info["also"] = {name: medians.pop(name) for name in also}
        benchmark.extra_info["others"] = medians

    with fastmeta.backend("ext"):
        yield run
    torch.set_num_threads(before)


@pytest.fixture
def table(request):
    """table(title, workload, cells): a row {way: number} of a table of other things than throughput."""
    tables = request.config.stash.setdefault(TABLES, defaultdict(dict))
    return lambda title, workload, cells: tables[title].__setitem__(workload, cells)


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter, config):
    yield
    for title, rows in config.stash.get(TABLES, {}).items():
        terminalreporter.section(title)
        for workload, cells in rows.items():
            row = "   ".join(f"{name} {number:.1f}" for name, number in cells.items())
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
            for name, seconds in {"ext": ours, **info["also"]}.items():
                terminalreporter.write_line("  " + _row(name, seconds, **info))


def _row(name, ours, threads, others, floor=None, **_):
    ratios = sorted((seconds / ours, name) for name, seconds in others.items())
    (ratio, fastest), *rest = ratios
    of_floor = f"{ours / floor:.2f}x the floor" if floor else ""
    return (
        f"{threads} thread{'s' if threads > 1 else ' '} {name:<13} {ours * 1e6:10.1f} us {of_floor:>17}"
        f"   fastest other way: {fastest} {ratio:.2f}x" + "".join(f"   {name} {ratio:.2f}x" for ratio, name in rest)
    )

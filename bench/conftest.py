"""Benches: every contender's result is checked against float64, then all contenders of a row are timed in turns; a table ends the run."""

import importlib.util
import itertools
import json
import time
from pathlib import Path

import pytest
import torch

import fastmeta
from measure import machine, peers, results
from measure.benches import FIRST, label, modules
from measure.session import THREADS, Session
from measure.timing import disagreement, first_call, in_words, results_of, synchronised, take_turns, turns_of
from measure.usage import dispatched, peak_of

collect_ignore = ["bench_scaling.py"]  # unless it is named: make scaling
SESSION = pytest.StashKey[Session]()
COMPARED = pytest.StashKey[tuple]()


def pytest_addoption(parser):
    parser.addoption(
        "--no-compile", action="store_true", help="leave out what compiles first (torch.compile, KeOps, JAX)"
    )
    parser.addoption("--all-compiled", action="store_true", help="race all compiled ways, on all threads: hours")
    parser.addoption("--quick", action="store_true", help="the first workload of each bench, no compiling: two minutes")
    parser.addoption("--isa", help="hold fastmeta and torch to this instruction set of the processor: avx2")
    parser.addoption("--results", type=Path, help="write <machine>.json, .md and figures into this folder")
    parser.addoption("--compare", type=Path, help="fail where fastmeta lost ground since this <machine>.json")


def pytest_configure(config):
    option = config.getoption
    if option("results") and not importlib.util.find_spec("matplotlib"):
        raise pytest.UsageError("--results: matplotlib must be installed, for the figures")
    if option("isa"):
        machine.hold_to(option("isa"))
    compiling = "none" if option("no_compile") else "all" if option("all_compiled") else "some"
    config.stash[SESSION] = Session(quick=option("quick"), compiling=compiling)


def pytest_report_header():
    return [f"does not race: {name}, {reason}" for name, reason in peers.missing().items()]


def pytest_collection_modifyitems(config, items):
    """The most telling benches first; the numbers of threads of a workload follow each other."""
    names = [f"bench_{name}" for name in ("training", *FIRST, "integrations", *modules())]
    place = {}
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=synchronised))
        name = item.path.stem
        place.setdefault(_key(item), (names.index(name) if name in names else len(names), len(place)))
    items.sort(key=lambda item: place[_key(item)])
    if config.getoption("quick"):
        first = {}
        chosen = [item for item in items if first.setdefault(item.function, item) is item]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


def _key(item):
    return item.path, label(item.function, _arguments(item))


def _arguments(item):
    """Of the bench, without the number of threads."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return {name: value for name, value in params.items() if name != "race"}


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.update(torch=torch.__version__, fastmeta=fastmeta.__version__)


@pytest.fixture(params=THREADS, ids=[f"{n} thread{'s' if n > 1 else ''}" for n in THREADS])
def race(request, benchmark):
    """race(group, contenders): check each of `contenders` against float64, then time them in turns. A row of results.py.

    The truth is contenders["reference"], or `truth` where that is too large to run, with the inputs in float64. `also` names other
    ways through fastmeta. `compiled` names further contenders, which take seconds to make, the best first: only where there is
    something to time. `floor` is the (bytes, flops) that no way can do without. `mode` says what is
    computed, `sizes` what a curve is drawn over. `memory`: measure each way's peak. `plan`: another budget and number of rounds than
    the session's.
    """
    session, threads, arguments = request.config.stash[SESSION], request.param, _arguments(request.node)
    op = request.function.__module__.rpartition(".")[2].removeprefix("bench_")
    before = torch.get_num_threads()
    torch.manual_seed(0)

    def run(group, contenders, also=None, compiled=None, truth=None, floor=None, mode="forward", sizes=None, memory=False,
            plan=session.plan):  # fmt: skip
        key, ours = label(request.function, arguments), ["ext", *(also or {})]
        if benchmark.enabled and (reason := session.why_not(key, threads)):
            session.left[reason].append(group)
            pytest.skip(reason)
        start = time.monotonic()
        torch._dynamo.reset()  # each group has its own specialisations
        expected = session.truth(request.function, arguments)
        torch.set_num_threads(threads)
        ways = contenders | (also or {})
        if not benchmark.enabled:
            check(ways if threads == 1 else {name: ways[name] for name in ours}, expected)
            benchmark(contenders["ext"])
            return
        runs, cells, not_timed = {}, {}, {}
        for name, fn in ways.items():
            check_in(name, fn, expected, runs, cells, not_timed)
            assert name in runs or name not in ours, f"{name}: {not_timed[name]}"
        compiling = time.monotonic()
        for name, fn in (compiled or {}).items():
            if session.may_compile(name, group, threads, time.monotonic() - compiling):
                check_in(name, fn, expected, runs, cells, not_timed)
        compiling = time.monotonic() - compiling
        session.compile_seconds += compiling
        benchmark.group = f"{op}, {mode}"
        times = in_turns(benchmark, runs, plan.budget / (1 if threads == THREADS[0] else 3), plan.rounds)
        session.took[key] = time.monotonic() - start - compiling
        if threads == THREADS[0]:
            count_operations(runs, cells, not_timed, profiled=("reference", *(compiled or {})))
            if memory and session.why_not(key, threads) is None and not request.config.getoption("quick"):
                for name in (way for way in runs if not way.startswith("jax")):  # mostly its compiler's
                    cells[name]["memory"] = peak_of(request.function, arguments, name)
        row = {
            "op": op, "mode": mode, "workload": group, "threads": threads, "sizes": sizes or {},
            "floor": machine.floor(*floor, threads) if floor else None, "ours": ours,
            "contenders": {name: results.measured(of_turns, **cells[name]) for name, of_turns in times.items()},
            "not timed": not_timed,
        }  # fmt: skip
        session.rows.append(row)
        return row

    with fastmeta.backend("ext"):
        yield run
    torch.set_num_threads(before)


def check(ways, expected):
    for name, fn in ways.items():
        wrong = disagreement(results_of(fn, fn()), expected)
        assert wrong is None, f"{name}: {wrong}"


def check_in(name, fn, expected, runs, cells, not_timed):
    """A way that is right is run, with the seconds of its first call; of another the reason is kept."""
    wrong, seconds = first_call(fn, expected)
    if wrong is None:
        runs[name], cells[name] = fn, {"first call": seconds}
    else:
        not_timed[name] = wrong


def count_operations(runs, cells, not_timed, profiled):
    for name, fn in runs.items():
        if not getattr(fn, "counted", True):
            continue
        try:
            cells[name]["dispatched"] = dispatched(fn, profiled=name in profiled)
        except Exception as error:  # of a library that runs under no mode
            not_timed[f"{name}, its operations"] = in_words(error)


def in_turns(benchmark, runs, budget, least):
    """{way: seconds of a call in each of its turns}, "ext" by pytest-benchmark."""
    turns, times, count = turns_of(runs, budget, least), {name: [] for name in runs}, itertools.count()
    others = {name: fn for name, fn in runs.items() if name != "ext"}

    def the_others():
        take_turns(others, turns, next(count), times)
        runs["ext"]()

    benchmark.pedantic(runs["ext"], teardown=the_others, rounds=turns.rounds, iterations=turns.calls["ext"])
    return times | {"ext": list(benchmark.stats.stats.data)}


@pytest.fixture
def table(request):
    """table(title, workload, cells): a row {way: number} of a table of other things than throughput."""
    tables = request.config.stash[SESSION].tables
    return lambda title, workload, cells: tables[title].__setitem__(workload, cells)


def pytest_sessionfinish(session):
    """Writes what came, whatever failed; a regression fails the run."""
    option, of_run = session.config.getoption, session.config.stash[SESSION]
    if not (of_run.rows or of_run.tables) or not (option("results") or option("compare")):
        return
    found = of_run.results()
    if folder := option("results"):
        path = folder / f"{machine.file_name(found['machine']['device'])}.json"
        results.write(path, results.as_json(found))
        results.write(path.with_suffix(".md"), results.markdown(found))
        from pages import plots  # which needs matplotlib

        plots.draw(found, path.with_suffix(""))
    if then := option("compare"):
        session.config.stash[COMPARED] = compared = results.regressions(json.loads(then.read_text()), found)
        if compared[1]:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter, config):
    yield
    session, say = config.stash[SESSION], terminalreporter.write_line
    for title, rows in session.tables.items():
        terminalreporter.section(title)
        for workload, cells in rows.items():
            say(f"{workload:<64}" + "   ".join(f"{name} {number:.1f}" for name, number in cells.items()))
    if session.rows:
        terminalreporter.section("fastmeta: medians (quartiles), and how many times longer each alternative takes")
    for workload, rows in itertools.groupby(session.rows, key=lambda row: row["workload"]):
        say(workload)
        for row in rows:
            for way in row["ours"]:
                say("  " + results.line(row, way))
            for name, reason in row["not timed"].items():
                say(f"    {name} not timed: {reason}")
    for reason, what in session.left.items():
        say(f"left out, {reason}: {', '.join(what)}")
    lines, worse = config.stash.get(COMPARED, ([], []))
    if lines:
        terminalreporter.section(
            f"compared with {config.getoption('compare').name}, worse by more than {results.TOLERANCE}x fails"
        )
    for line in lines:
        say(line + ("   WORSE" if line in worse else ""))

"""A run of the benches: what it plans, what is true, and a whole run of planted benches."""

import copy
import json
import time

import torch

import fastmeta
from harness import forks
from harness.places import ROOT
from measure import benches, contenders, machine, results
from measure.session import FULL, ROW_COMPILING, SLOW_ROW, THREADS, Session
from measure.timing import first_call, in_words, turns_of
from measure.usage import dispatched


def test_a_reason_names_no_folder_of_the_machine():
    words = in_words(ImportError("/some/where/x.so: file too short, 3/4 done"))
    assert words == "ImportError: x.so: file too short, 3/4 done"


def test_a_truth_has_the_numbers_of_float32():
    draws = {}

    def bench(race, size):
        linear = torch.nn.Linear(size, 2)
        numbers = [
            torch.randn(size, requires_grad=True),
            torch.rand(3),
            *linear.parameters(),
            torch.randn_like(linear.weight),
        ]
        draws[torch.get_default_dtype()] = numbers
        race("group", {"reference": lambda: [x.sum() for x in numbers]})

    torch.manual_seed(0)
    bench(lambda *_: None, 20)
    truth = benches.in_float64(bench, {"size": 20})
    assert all(x.dtype == torch.float64 for x in truth) and torch.get_default_dtype() == torch.float32
    for single, double in zip(draws[torch.float32], draws[torch.float64], strict=True):
        assert double.dtype == torch.float64 and torch.equal(single.double(), double)
        assert single.requires_grad == double.requires_grad


def test_dispatched_operations():
    x = torch.ones(3)
    assert dispatched(lambda: (x + 1) * 2) == 2 == dispatched(lambda: (x + 1) * 2, profiled=True)
    query, centres, targets = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3), torch.tensor([0, 1, 1, 0])
    with fastmeta.backend("reference"):  # inside an op of ours
        counts = [dispatched(lambda: fastmeta.proto_loss(query, centres, targets), profiled=p) for p in (False, True)]
    assert counts[1] > 2 * counts[0]


def test_large_inputs_rotate(monkeypatch):
    monkeypatch.setattr(machine, "cache", lambda device: 2**25)
    small, large = torch.ones(3, requires_grad=True), torch.randn(2**22)
    copies = contenders.rotation([small])
    assert next(copies)[0] is small is next(copies)[0]
    copies = contenders.rotation([large, small])
    turns = [next(copies) for _ in range(4)]
    assert turns[0][0] is large is turns[3][0] and len({x.data_ptr() for x, _ in turns}) == 3
    assert all(torch.equal(x, large) and y.requires_grad for x, y in turns)


def test_what_compiles_first_is_planned():
    session = Session()
    assert session.may_compile("compiled best", "w", THREADS[0], 0) and not session.left
    assert session.may_compile("keops", "w", THREADS[0], ROW_COMPILING + 1)
    session.compile_seconds = FULL.compiling + 1
    for threads, group, seconds in (
        (THREADS[1], "w", 0),
        (THREADS[0], "sqeuclidean", 0),
        (THREADS[0], "w", ROW_COMPILING + 1),
    ):
        assert not session.may_compile("compiled best", group, threads, seconds)
    assert not session.may_compile("compiled best", "w", THREADS[0], 0)
    assert len(session.left) == 4 and all(what == ["compiled best"] for what in session.left.values())
    assert Session(compiling="all").may_compile("compiled best", "sqeuclidean", THREADS[1], ROW_COMPILING + 1)
    for none in (Session(compiling="none"), Session(quick=True)):
        assert not none.may_compile("compiled best", "w", THREADS[0], 0)


def test_jax_races_on_the_threads_that_it_has():
    assert Session().may_compile("jax mm", "sqeuclidean", THREADS[0], ROW_COMPILING + 1)
    for compiling in ("some", "all", "none"):
        assert not Session(compiling=compiling).may_compile("jax mm", "w", THREADS[1], 0)
    assert not Session(compiling="none").may_compile("jax", "w", THREADS[0], 0)


def test_turns_have_whole_periods():
    def every_tenth():
        time.sleep(4e-4)

    every_tenth.period = 10
    turns = turns_of({"one": every_tenth, "other": lambda: time.sleep(4e-4)}, budget=0.1)
    assert turns.calls["one"] % 10 == 0 < turns.calls["other"] <= 8


def test_a_contender_may_have_results_apart_from_its_call():
    class Way:
        def __call__(self):
            return "no tensor"

        def results(self):
            return [torch.ones(3)]

    assert first_call(Way(), [torch.ones(3)])[0] is None
    assert first_call(Way(), [torch.zeros(3)])[0].startswith("error")


def test_time_is_planned():
    session = Session()
    assert session.why_not("row", THREADS[1]) is None
    session.took["row"] = SLOW_ROW + 1
    assert session.why_not("row", THREADS[0]) is None and "took more than" in session.why_not("row", THREADS[1])
    session.start -= FULL.limit + 1
    assert "were over" in session.why_not("row", THREADS[0])


PLANTED = """
import torch

x = torch.randn(5)

def bench_right(race):
    x = torch.randn(5)
    ways = {"ext": lambda: x + 1, "reference": lambda: 1 + x, "wrong": lambda: x, "raises": lambda: 1 / 0}
    race("planted", ways, floor=(40, 5))

def bench_wrong(race):
    x = torch.randn(5)
    race("ours is wrong", {"ext": lambda: x, "reference": lambda: x + 1})
"""
FOLDERS = "pythonpath=bench tools examples csrc"  # the first has the conftest
KNOWN_RATES = """
from measure import machine, session

machine.ceilings = session.ceilings = lambda *_: (1e10, 1e11)  # of the machine, measured once
"""


def test_a_whole_run(tmp_path):
    """A way that fails stands in its row; where ours is wrong the run fails and has its files; a regression fails a run."""
    planted = tmp_path / "bench_planted.py"
    planted.write_text(KNOWN_RATES + PLANTED)

    def bench(*options):
        words = ["-m", "pytest", "-p", "conftest", "-o", FOLDERS, "-c", ROOT / "pyproject.toml", "--quick", planted]
        return forks.run(*words, *options, cwd=tmp_path)

    done = bench("--results", tmp_path)
    (file,) = tmp_path.glob("*.json")
    found = json.loads(file.read_text())
    assert done.returncode == 1 and "AssertionError: ext: error" in done.stdout, done.stdout
    (of_right,) = found["rows"]
    assert set(of_right["contenders"]) == {"ext", "reference"} and of_right["contenders"]["ext"]["dispatched"] == 1
    assert of_right["not timed"]["raises"] == "ZeroDivisionError: division by zero"
    assert of_right["not timed"]["wrong"].startswith("error") and "wrong not timed: error" in done.stdout
    assert file.with_suffix(".md").exists() and list(tmp_path.glob("*-speedups.svg"))
    assert str(tmp_path) not in file.read_text()
    for factor, code, word in ((1e-3, 1, "WORSE"), (1e3, 0, "then")):
        then = copy.deepcopy(found)
        ours = then["rows"][0]["contenders"]["ext"]
        ours |= {"seconds": factor * ours["seconds"], "quartiles": [factor * x for x in ours["quartiles"]]}
        file.write_text(results.as_json(then))
        done = bench("-k", "right", "--compare", file)
        assert done.returncode == code and word in done.stdout, done.stdout

"""What the benches make of their races: rows, comparisons, tables and pictures, on rows that are written here; and a whole run of planted
benches."""

import copy
import json
import os
import re

import pytest
import torch

import fastmeta
from harness import forks
from harness.places import ROOT, WITH_TOOLS
from measure import recorded, results
from measure.dispatched import dispatched
from measure.session import FULL, ROW_COMPILING, SLOW_ROW, THREADS, Session
from measure.timing import in_words
from pages import result_pages
from pages.highlights import HIGHLIGHTS

BENCH = ROOT / "bench"
PUBLISHED = [
    ROOT / "README.md",
    *(page for kind in ("md", "json", "svg") for page in sorted((ROOT / "bench/results").rglob(f"*.{kind}"))),
    *sorted((ROOT / "examples/results").glob("*.json")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/pictures").glob("*.svg")),
]


def cell(seconds, spread=0.02, **more):
    return {"seconds": seconds, "quartiles": [seconds * (1 - spread), seconds * (1 + spread)], **more}


def row(workload="w K5", threads=2, ours=1e-3, sizes=None, **others):
    ways = {"ext": cell(ours, **{"first call": 0.2, "dispatched": 7, "memory": 3 * 2**20}), "learner": cell(2 * ours)}
    ways |= {name: cell(seconds) for name, seconds in others.items()}
    return {
        "op": "proto_loss", "mode": "forward", "workload": workload, "threads": threads, "sizes": sizes or {}, "floor": ours / 4,
        "ours": ["ext", "learner"], "contenders": ways, "not timed": {"peer": "wrong"},
    }  # fmt: skip


def run(*rows):
    machine = {"device": "Some CPU, 2 cores", "instructions": "avx2", "torch": "2", "date": "today"}
    memory = {"peak, MiB": {"MAML K1": {"ext": 1.0, "loop": 2.0}, "MAML K5": {"ext": 1.0, "loop": 8.0}}}
    memory |= {"first call, ms": {"MAML K5": {"ext": 3.0, "compiled": 3e4}}}
    ceilings = {"2 threads": [1e10, 1e11]}
    return {
        "machine": machine | {"ceilings": ceilings},
        "rows": list(rows),
        "tables": memory,
        "left out": ["that: why"],
    }


def test_a_cell_is_the_median_and_the_quartiles():
    assert results.measured([3.0, 1.0, 2.0, 5.0, 4.0], dispatched=3) == {
        "seconds": 3.0, "quartiles": [1.5, 4.5], "dispatched": 3,
    }  # fmt: skip
    assert results.measured([2.0])["quartiles"] == [2.0, 2.0]


def test_the_fastest_other_way_is_none_of_ours():
    name, times = results.speedup(row(reference=8e-3, other=5e-3))
    assert name == "other" and times == pytest.approx(5)
    assert results.speedup(row()) is None


def worse(then, now):
    return results.regressions(run(then), run(now))[1]


def test_a_planted_regression_is_found():
    then = row(reference=8e-3, other=5e-3)
    (line,) = worse(then, row(ours=1.5e-3, reference=8e-3, other=5e-3))
    assert line == "w K5, 2 threads: ours / fastest other 0.200 then, 0.300 now"


@pytest.mark.parametrize(
    "now",
    [
        row(reference=8e-3, other=5e-3),
        row(ours=5e-3, reference=40e-3, other=25e-3),  # a slower machine
        row(ours=1.2e-3, reference=8e-3, other=5e-3),  # within the tolerance
        row(ours=1e-3, reference=8e-3, other=5e-3, new=1e-3),  # a way that did not race then
        row(ours=1.5e-3, threads=1, reference=8e-3, other=5e-3),  # another row
        row(ours=1.5e-3, another=5e-3),  # no way in both
    ],
    ids=["same", "slower machine", "tolerance", "new way", "other threads", "nothing shared"],
)
def test_what_is_no_regression(now):
    assert worse(row(reference=8e-3, other=5e-3), now) == []


def test_a_ratio_within_the_spread_is_no_regression():
    now = row(ours=1.5e-3, reference=8e-3, other=5e-3)
    assert worse(row(reference=8e-3, other=5e-3), now)
    now["contenders"]["ext"] = cell(1.5e-3, spread=0.4)
    assert not worse(row(reference=8e-3, other=5e-3), now)


def test_rows_of_both_runs_are_told():
    lines, _ = results.regressions(
        run(row(other=5e-3), row("gone", other=1.0)), run(row(other=5e-3), row("new", other=1.0))
    )
    assert [line.split(",")[0] for line in lines] == ["w K5"]


def test_tables_say_it_all():
    found = run(row(reference=8e-3, other=5e-3))
    text = results.markdown(found)
    assert "| ext | 1000.0 (980.0-1020.0) | 1.00 | 200.0 | 7 | 3.0 |" in text
    assert "| other | 5000.0 (4900.0-5100.0) | 5.00 | - | - | - |" in text
    assert "25% of ours" in text and "- peer not timed: wrong" in text and "- that: why" in text and "loop 8.0" in text
    line = results.line(found["rows"][0], "ext")
    assert re.search(
        r"2 threads ext +1000.0 us \(980.0-1020.0\) +25% of the roofline +first 200.0 ms +7 ops +3.0 MiB", line
    )
    assert line.endswith("fastest alternative: other 5.00x   reference 8.00x")


def test_files_are_whole(tmp_path):
    path = tmp_path / "new/some.json"
    results.write(path, results.as_json(run(row(other=1.0))))
    assert json.loads(path.read_text()) == run(row(other=1.0)) and os.listdir(path.parent) == ["some.json"]


@pytest.mark.parametrize("page", result_pages.pages(), ids=lambda page: page.name)
def test_a_page_is_what_its_file_gives(page):
    assert result_pages.page(page) == page.read_text()


def test_the_table_of_a_page_has_the_rows_of_its_ops():
    rows = [
        row("b", reference=8e-3),
        row("a", other=5e-3),
        row("a", threads=1, other=3e-3),
        row("c") | {"op": "mlp_grad"},
        row("alone"),
    ]
    lines = result_pages.op_lines(run(*rows), "some.json", ("proto_loss",))
    assert lines[3:] == [
        "| workload | 1 thread: fastmeta | 1 thread: fastest alternative | 2 threads: fastmeta | 2 threads: fastest alternative |",
        "| --- | --- | --- | --- | --- |",
        "| a | 1 ms (25% of the roofline) | 3.00x (other) | 1 ms (25% of the roofline) | 5.00x (other) |",
        "| b | - | - | 1 ms (25% of the roofline) | 8.00x (reference) |",
        "",
    ]


def test_the_table_of_the_integrations():
    of_higher = row("W1 in higher's language", higher=9e-3, accelerated=3e-3, reference=4e-3) | {"op": "integrations"}
    without = row("the same without the library", reference=8e-3) | {"op": "integrations"}
    lines = result_pages.integration_lines(run(of_higher, without, row("other", higher=2e-3)), "some.json")
    assert lines[5:7] == ["| higher | inner loop | 9.0x | 3.0x | 4.5x |", ""]
    assert lines[-2:] == ["| in higher's language | 9 ms | 9.00x | 3.00x | 4.50x |", ""]
    slower = row("head in higher's language", ours=4.5e-4, higher=9e-3) | {"op": "integrations"}
    lines = result_pages.integration_lines(run(of_higher, of_higher | {"ours": ["ext"]}, slower), "some.json")
    assert lines[5:7] == [
        "| higher | inner loop | 9.0x | 3.0x | 4.5 to 9.0x |",
        "| higher | head of ProtoNet | 20x | - | 10x |",
    ]


def test_the_tables_of_chosen_rows():
    rows = [row(workload, reference=8e-3, other=5e-3) for workload in result_pages.ROWS | HIGHLIGHTS]
    rows.append(row("more", threads=1))
    lines = result_pages.performance_lines(run(*rows), "bench/results/some.json")
    assert sum("| 1 ms | 8.0x | 5.0x (other) |" in line for line in lines) == len(result_pages.ROWS)
    lines = result_pages.readme_lines(run(*rows), "bench/results/some.json")
    assert lines[5] == "| MAML on Conv4, 5 inner steps, 8 tasks | 1 ms | 5 ms (eager PyTorch) | 5.0x |"
    assert len(lines) == 4 + 5 + 2
    for of_page in (result_pages.performance_lines, result_pages.readme_lines):
        with pytest.raises(ValueError, match="every workload must have been raced, got none of"):
            of_page(run(row("more")), "bench/results/some.json")


def test_a_reason_names_no_folder_of_the_machine():
    words = in_words(ImportError("/some/where/x.so: file too short, 3/4 done"))
    assert words == "ImportError: x.so: file too short, 3/4 done"


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.name)
def test_what_is_published_names_no_folder_of_a_machine(file):
    assert not re.search(r"(?<![\w.])/(?:root|home|tmp|mnt|Users|opt|work|usr)/", file.read_text())


def test_pictures(tmp_path):
    plots = pytest.importorskip("plots", reason="needs matplotlib")
    rows = [row(name, reference=8e-3, other=5e-3) for name in ("first", "second")]
    assert plots.chosen(run(*rows)) is None
    (ax,) = plots.chosen(run(*(row(name, other=(3 - 0.25 * i) * 1e-3) for i, name in enumerate(HIGHLIGHTS)))).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == list(HIGHLIGHTS.values())
    assert [text.get_text() for text in ax.texts][:2] == ["3.0x", "2.8x"]
    found = run(*rows, row("curve", other=1.0, sizes={"T": 8}), row("few", threads=1, other=1.0), row("alone"))
    (ax,) = plots.speedups(found["rows"]).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"]
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(1, pytest.approx(4))] * 2
    (ax,) = plots.memory(found["tables"]).axes
    assert {line.get_label(): line.get_xydata().tolist() for line in ax.lines} == {
        "fastmeta": [[1, 1], [5, 1]], "loop": [[1, 2], [5, 8]],
    }  # fmt: skip
    once = [path.read_bytes() for path in plots.draw(found, tmp_path / "once")]
    again = [path.read_bytes() for path in plots.draw(found, tmp_path / "again")]
    assert once == again and len(once) == 2 and b"5.00x other" in once[0]
    assert plots.draw(run() | {"tables": {}}, tmp_path / "none") == []


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
    truth = recorded.in_float64(bench, {"size": 20})
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
KNOWN_RATES = """
from measure import roofline, session

roofline.rates = session.rates = lambda *_: (1e10, 1e11)  # of the machine, measured once
"""


def test_a_whole_run(tmp_path):
    """A way that fails stands in its row; where ours is wrong the run fails and has its files; a regression fails a run."""
    planted = tmp_path / "bench_planted.py"
    planted.write_text(PLANTED)

    def bench(*options):
        words = ["-m", "pytest", "-p", "conftest", "-c", ROOT / "pyproject.toml", "--quick", planted, *options]
        env = WITH_TOOLS
        return forks.run(*words, env=env, cwd=tmp_path)

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
    planted.write_text(KNOWN_RATES + PLANTED)
    for factor, code, word in ((1e-3, 1, "WORSE"), (1e3, 0, "then")):
        then = copy.deepcopy(found)
        ours = then["rows"][0]["contenders"]["ext"]
        ours |= {"seconds": factor * ours["seconds"], "quartiles": [factor * x for x in ours["quartiles"]]}
        file.write_text(results.as_json(then))
        done = bench("-k", "right", "--compare", file)
        assert done.returncode == code and word in done.stdout, done.stdout


def test_large_inputs_rotate():
    code = """
import torch; from measure import roofline, common
roofline.cache = lambda device: 2**25
small, large = torch.ones(3, requires_grad=True), torch.randn(2**22)
copies = common.rotation([small])
assert next(copies)[0] is small is next(copies)[0]
copies = common.rotation([large, small])
turns = [next(copies) for _ in range(4)]
assert turns[0][0] is large is turns[3][0] and len({x.data_ptr() for x, _ in turns}) == 3
assert all(torch.equal(x, large) and y.requires_grad for x, y in turns)
"""
    done = forks.run("-c", code, cwd=BENCH)
    assert done.returncode == 0, done.stderr

"""The sweeps' curves, the plan for many GPUs and the page that holds them, on rows that are written here and on the page's own."""

import json
import math
from pathlib import Path

import bench_scaling
import pytest

from measure import cluster, curves, plan, study

ROOT = study.ROOT


def row(value, ours, floor, threads=1, sweep="sweep", quartiles=(1.0, 1.0), **others):
    ways = {"ext": {"seconds": ours, "quartiles": [q * ours for q in quartiles]}}
    ways |= {name: {"seconds": seconds, "quartiles": [seconds] * 2} for name, seconds in others.items()}
    return {
        "op": "scaling", "mode": sweep, "workload": f"{sweep}: T = {value}", "threads": threads, "sizes": {"T": value},
        "floor": floor, "ours": ["ext"], "contenders": ways, "not timed": {} if others else {"loop": "took 3 s at T = 4"},
    }  # fmt: skip


ROWS = [
    row(16, 8e-3, 4e-3),
    row(1, 1e-3, 1e-5, loop=4e-3),
    row(4, 2e-3, 1e-3, loop=6e-3),
    row(16, 5e-3, 2e-3, threads=2),
]


def test_cells_of_a_sweep_are_by_size():
    """16 times the tasks of the size before take 4 times as long: growth 1; 4 times twice: growth 1 / 2."""
    assert list(curves.cells(ROWS)) == [
        ("sweep", "T = 1", "1 ms", "", "-", "1%", "4.0x (loop)"),
        ("", "T = 4", "2 ms", "0.50", "-", "50%", "3.0x (loop)"),
        ("", "T = 16", "8 ms", "1.00", "5 ms", "50%", "loop took 3 s at T = 4"),
    ]


def test_pictures_of_the_same_rows_are_the_same(tmp_path):
    rows = [*ROWS, row(1, 1e-3, 1e-5, threads=2, loop=1e-3)]
    rows[1]["contenders"]["loop"]["memory"] = 2**20
    for name, draw in (("speed", curves.speed_curves), ("memory", curves.memory_curves)):
        once, again = (tmp_path / f"{name}{i}.svg" for i in range(2))
        for path in (once, again):
            study.save(draw(rows), path)
        assert once.read_bytes() == again.read_bytes() and b"sweep" in once.read_bytes()
    assert b"fastest eager alternative" in (tmp_path / "speed0.svg").read_bytes()


def test_the_share_of_the_peak_is_that_of_the_way():
    rows = [row(4, 1e-3, 5e-4, threads=2, engine=2e-3), row(4, 1e-3, 9e-4), row(1, 1e-3, 8e-4, threads=2)]
    assert plan.share_of(rows, "sweep", 4, "engine") == 0.25
    assert plan.share_of(rows, "sweep", 4, "ext") == 0.5


def test_the_spread_has_the_quartiles_of_long_calls():
    rows = [row(1, 1.0, 1e-5, quartiles=(1 / 1.1, 1.1)), row(2, 1e-3, 1e-5, quartiles=(0.1, 10.0))]
    sigma, factors = plan.spread(rows)
    assert sigma == pytest.approx(math.log(1.1) / plan.QUARTILE)
    assert factors == sorted(factors) and factors[250] == pytest.approx(1 / 1.1, rel=1e-3)
    assert factors[750] == pytest.approx(1.1, rel=1e-3)


def test_where_scaling_stops_and_why():
    """One second a task: strong scaling stops with the tasks. A fixed second: with that. Large gradients: with the network."""
    of_tasks = cluster.Workload(1000, cluster.linear(0.0, 1.0))
    of_launches = cluster.Workload(1000, cluster.linear(1.0, 1e-3))
    of_network = cluster.Workload(10**6, cluster.linear(0.0, 1e-7))
    expected = {
        (of_tasks, "strong"): f"{plan.META_BATCH}: ranks without tasks",
        (of_launches, "strong"): "2: launches, and a card that is not full",
        (of_network, "weak"): "1: all-reduce",
    }
    for (workload, scaling), words in expected.items():
        found = plan.efficiencies(workload, [1.0])[scaling]
        assert plan.stops(workload, scaling, found, [1.0]) == words, words
    found = plan.efficiencies(of_tasks, [1.0, 1.0, 1.5])["weak"]
    assert plan.stops(of_tasks, "weak", found, [1.0, 1.0, 1.5]) == "beyond 4096: stragglers"


def test_the_page_is_what_the_study_says():
    """And every picture that it shows is there."""
    text = study.PAGE.read_text()
    source = study.BEGIN.search(text)[1]
    lines, pictures = study.study(json.loads((ROOT / source).read_text()))
    assert study.page(text, lines) == text
    for name in pictures:
        path = f"bench/results/{Path(source).stem}-{name}.svg"
        assert (ROOT / path).exists() and f"](../{path})" in text, path


def test_a_way_that_is_too_slow_is_left_out_of_larger_sizes_and_the_row_says_so(monkeypatch):
    monkeypatch.setattr(bench_scaling, "too_slow", {})
    raced, rows = [], []

    def race(name, contenders, **_):
        raced.append(set(contenders))
        rows.append(row(4, 1.0, 1e-3, **{way: 2 * bench_scaling.SLOW for way in contenders if way != "ext"}))
        rows[-1]["not timed"] = {}
        return rows[-1]

    ways = {"ext": None, "loop": None}
    for value in (4, 4, 16):
        bench_scaling.point(race, "s", "T", value, ways, None, "loop")
    assert raced == [{"ext", "loop"}, {"ext", "loop"}, {"ext"}]
    assert [r["not timed"] for r in rows] == [{}, {}, {"loop": "took 0.6 s at T = 4"}]

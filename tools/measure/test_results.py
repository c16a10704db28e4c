"""What is made of the races' rows: comparisons of runs, text and files."""

import json
import os
import re

import pytest

from measure import results
from measure.made_up import cell, row, run


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

"""The table and the picture of docs/unroll.md are those of their file; a measurement goes into it row by row."""

import json

import pytest

from measure import against_steps
from pages import inner_loops_page


def test_the_page_is_what_its_file_gives(tmp_path):
    assert inner_loops_page.page(inner_loops_page.PAGE.read_text()) == inner_loops_page.PAGE.read_text()
    inner_loops_page.draw(json.loads(inner_loops_page.RESULTS.read_text()), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == inner_loops_page.PICTURE.read_text()


def test_rows_are_of_a_program_a_way_and_steps(tmp_path, monkeypatch):
    """Memory first, then the time beside it; what took much at few steps is not run at more."""
    out = tmp_path / "rows.json"
    monkeypatch.setattr(
        against_steps, "in_new_process", lambda function, program, way, k: 600.0 * k if way == "autograd" else 2.0
    )
    words = ["--programs", "modulate", "--steps", "2", "1", "3", "--results", str(out)]
    against_steps.main(["memory", *words])
    against_steps.main(["time", *words])
    rows = {(row["way"], row["steps"]): row for row in json.loads(out.read_text())}
    assert rows["unroll", 3]["MiB"] == rows["unroll", 3]["seconds"] == 2.0 and len(rows) == 12
    assert "MiB" in rows["autograd", 2] and "MiB" not in rows["autograd", 3]
    lines = inner_loops_page.lines_of(list(rows.values()))
    assert [line for line in lines if "MiB" in line] == ["| modulate.py | MiB | 2 | 2 | 2 | 1200 | 2 |"]


@pytest.mark.parametrize("quantity", against_steps.MEASURES)
def test_a_measurement(quantity, monkeypatch):
    monkeypatch.setattr(against_steps, "SECONDS", 0)
    _, function = against_steps.MEASURES[quantity]
    assert against_steps.in_new_process(function, "modulate", "autograd", 1) > 0

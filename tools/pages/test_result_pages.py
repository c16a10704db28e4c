"""The tables and pictures of pages, on rows that are written here and on the pages' own."""

import re

import pytest

from harness.places import ROOT
from measure.made_up import row, run
from pages import plots, result_pages
from pages.highlights import HIGHLIGHTS

PUBLISHED = [
    ROOT / "README.md",
    *(page for kind in ("md", "json", "svg") for page in sorted((ROOT / "bench/results").rglob(f"*.{kind}"))),
    *sorted((ROOT / "examples/results").glob("*.json")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/pictures").glob("*.svg")),
]


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


def test_the_table_of_whole_meta_iterations():
    assert result_pages.training_lines(run(row("other", eager=1.0))) == []
    rows = [row("K1", threads=n, eager=8e-3, compiled=5e-3, jax=25e-4) | {"op": "training"} for n in (1, 2)]
    lines = result_pages.training_lines(run(*rows, row("K5", eager=8e-3) | {"op": "training"}))
    assert lines[2:] == [
        "| whole meta-iteration | fastmeta | eager PyTorch | torch.compile | JAX |",
        "| --- | --- | --- | --- | --- |",
        "| K1 | 1 ms | 8 ms (8.0x) | 5 ms (5.0x) | 2.5 ms (2.5x) |",
        "| K5 | 1 ms | 8 ms (8.0x) | - | - |",
        "",
    ]


def test_the_words_of_who_is_fastest():
    for way, words in {
        "jax mm": "JAX",
        "compiled mm": "torch.compile",
        "higher": "higher",
        "mm": "eager PyTorch",
    }.items():
        assert result_pages._first_cells(row(**{way: 2e-3}), "w")[2] == f"2 ms ({words})"


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


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.name)
def test_what_is_published_names_no_folder_of_a_machine(file):
    assert not re.search(r"(?<![\w.])/(?:root|home|tmp|mnt|Users|opt|work|usr)/", file.read_text())


def test_pictures(tmp_path):
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

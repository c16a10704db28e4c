"""The table of docs/unroll.md and its picture, of examples/results/inner_loops.json: the last line of `make inner-loops`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator
from plain import WAYS
from style import plt, save

from harness.places import ROOT
from harness.unrolled_programs import PROGRAMS
from measure.against_steps import MEASURES, RESULTS
from pages.tables import replaced, table

Rows = list[dict[str, Any]]
PAGE, PICTURE = ROOT / "docs/unroll.md", ROOT / "docs/pictures/inner_loops.svg"
BEGIN, END = "<!-- make inner-loops writes from here -->", "<!-- make inner-loops: to here -->"
NAMES = {
    "unroll": "`unroll`", "unroll-sqrt": '`unroll`, `keep="sqrt"`', "autograd": "autograd", "checkpoint": "a checkpoint a step",
}  # fmt: skip
COLUMNS = 4


def lines_of(rows: Rows) -> list[str]:
    """For each program and quantity that was measured: each way at the most steps that all took, and how that grew from the fewest."""
    cells = []
    for unit, program, found in panels(rows):
        common = set.intersection(*({k for k, _ in curve} for curve in found.values()))
        texts = [_number(dict(curve)[max(common)]) for curve in found.values()]
        cells.append([f"{program}.py", unit, str(max(common)), *texts])
    dates = " to ".join(sorted({min(row["date"] for row in rows), max(row["date"] for row in rows)}))
    machines = " and ".join(sorted({row["machine"] for row in rows}))
    return ["", f"{machines}, one thread, {dates}:", "", *table(["program", "", "K", *NAMES.values()], cells)]


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def panels(rows: Rows) -> Iterable[tuple[str, str, dict[str, list[tuple[int, float]]]]]:
    """(unit, program, {way: its points}), a quantity after the other."""
    for unit, _ in MEASURES.values():
        for program in PROGRAMS:
            found = {
                way: [
                    (row["steps"], row[unit])
                    for row in rows
                    if (row["program"], row["way"]) == (program, way) and unit in row
                ]
                for way in WAYS
            }
            if all(found.values()):
                yield unit, program, {way: sorted(curve) for way, curve in found.items()}


def draw(rows: Rows, path: Path) -> None:
    drawn = list(panels(rows))
    high = -(-len(drawn) // COLUMNS)
    figure, axes = plt.subplots(high, COLUMNS, figsize=(11, 2.4 * high + 0.5), squeeze=False)
    for ax in axes.flat[len(drawn) :]:
        ax.remove()
    for ax, (unit, program, curves) in zip(axes.flat, drawn, strict=False):
        for way, curve in curves.items():
            ax.plot(*zip(*curve, strict=True), "o-", markersize=3, label=NAMES[way].replace("`", ""))
        ax.set(xlabel="inner steps K", ylabel=unit, xscale="log", yscale="log")
        ax.set_title(f"{program}.py", fontsize=10)
        ticks = sorted({k for curve in curves.values() for k, _ in curve})
        ax.set_xticks(ticks, [str(k) for k in ticks])
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(NAMES))
    save(figure, path)


def page(text: str) -> str:
    return replaced(text, lines_of(json.loads(RESULTS.read_text())), BEGIN, END)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    draw(json.loads(RESULTS.read_text()), PICTURE)

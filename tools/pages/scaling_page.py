"""`make study`: the pictures of the sweeps of bench_scaling.py, and their table in docs/performance.md, of the file that it names."""

import json
import math
import re
from collections import defaultdict

from style import plt, save

from harness.places import ROOT
from measure import results
from pages.tables import replaced, table

PAGE = ROOT / "docs/performance.md"
BEGIN = re.compile(r"<!-- make study writes curves from here, of (bench/results/scaling/\S+\.json) -->")
END = "<!-- make study: curves to here -->"


def sweeps(rows):
    """{sweep: {threads: its rows, by size}}."""
    found = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["mode"]][row["threads"]].append(row)
    for threads in found.values():
        for of_sweep in threads.values():
            of_sweep.sort(key=lambda row: size_of(row)[1])
    return found


def size_of(row):
    """("T", 16)."""
    ((size, value),) = row["sizes"].items()
    return size, value


def speed_curves(rows):
    """A panel for each sweep; a sweep of one point has none."""
    drawn = {sweep: threads for sweep, threads in sweeps(rows).items() if len(threads[1]) > 1}
    figure, axes = _panels(len(drawn))
    for ax, (sweep, threads) in zip(axes, drawn.items(), strict=False):
        for count, line in ((1, "-"), (2, "--")):
            points = [(size_of(row)[1], 1e6 * results.ours_of(row)["seconds"]) for row in threads[count]]
            _curve(ax, points, f"fastmeta, {results.threads(threads[count][0])}", color="C0", linestyle=line)
        others = [(row, results.speedup(row)) for row in threads[1]]
        times = [(size_of(row)[1], 1e6 * found[1] * results.ours_of(row)["seconds"]) for row, found in others if found]
        _curve(ax, times, "fastest eager alternative, 1 thread", color="C1")
        _curve(
            ax,
            [(size_of(row)[1], 1e6 * row["floor"]) for row in threads[1]],
            "roofline, 1 thread",
            color="0.4",
            linestyle=":",
        )
        ax.set(xlabel=size_of(threads[1][0])[0], ylabel="us")
        ax.set_title(sweep, fontsize=9)
    _legend(figure, axes[0])
    return figure


def memory_curves(rows):
    """Peaks on top of the inputs, a panel for each sweep that has them."""
    panels = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for way, cell in row["contenders"].items():
            if cell.get("memory"):
                panels[row["mode"]][way].append((size_of(row)[1], cell["memory"] / 2**20))
    figure, axes = _panels(len(panels))
    names = {rows["mode"]: size_of(rows)[0] for rows in rows}
    ways = list(dict.fromkeys(way for curves in panels.values() for way in curves))
    for ax, (sweep, curves) in zip(axes, panels.items(), strict=False):
        for way, points in curves.items():
            _curve(ax, sorted(points), "fastmeta" if way == "ext" else way, color=f"C{ways.index(way)}")
        ax.set(xlabel=names[sweep], ylabel="MiB")
        ax.set_title(f"{sweep}: peak memory", fontsize=9)
        ax.legend(fontsize=8)
    return figure


def _panels(count, across=3):
    across = min(count, across)
    down = math.ceil(count / across)
    figure, axes = plt.subplots(down, across, figsize=(3.9 * across, 3 * down + 0.5), squeeze=False)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, axes.flat


def _curve(ax, points, label, **look):
    if points:
        ax.loglog(*zip(*points, strict=True), label=label, marker="o", markersize=3, linewidth=1.5, **look)


def _legend(figure, ax):
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)


HEADS = ("sweep", "size", "1 thread", "growth", "2 threads", "of the roofline's speed", "fastest eager alternative")


def cells(rows):
    """The least, the middle and the greatest size of each sweep. Growth: g where the time went with size^g from the size before."""
    for sweep, threads in sweeps(rows).items():
        of_one = threads[1]
        for i in sorted({0, len(of_one) // 2, len(of_one) - 1}) if of_one else ():
            row, two = of_one[i], [other for other in threads[2] if other["sizes"] == of_one[i]["sizes"]]
            growth = f"{_growth(of_one[i - 1], row):.2f}" if i else ""
            yield sweep if i == 0 else "", *_cells(row, _duration(row), growth, _duration(two[0]) if two else "-")
        for row in threads[2] if not of_one else ():  # too slow for more than one number of threads
            yield sweep, *_cells(row, "-", "", _duration(row))


def _cells(row, of_one, growth, of_two):
    share = f"{row['floor'] / results.ours_of(row)['seconds']:.0%}"
    return "{} = {}".format(*size_of(row)), of_one, growth, of_two, share, _fastest(row)


def _duration(row):
    return results.duration(results.ours_of(row)["seconds"])


def _fastest(row):
    if found := results.speedup(row):
        return f"{found[1]:.1f}x ({found[0]})"
    return "; ".join(f"{way} {why}" for way, why in row["not timed"].items())


def _growth(before, row):
    times, values = (
        [f(r) for r in (before, row)] for f in (lambda r: results.ours_of(r)["seconds"], lambda r: size_of(r)[1])
    )
    return math.log(times[1] / times[0]) / math.log(values[1] / values[0])


def page(text, found):
    """The page anew."""
    rows, facts = found["rows"], found["machine"]
    about = f"{facts['device']} ({facts['instructions']}), torch {facts['torch']}, {facts['date']}, float32:"
    return replaced(text, ["", about, "", *table(HEADS, cells(rows))], BEGIN.search(text)[0], END)


def main():
    text = PAGE.read_text()
    source = ROOT / BEGIN.search(text)[1]
    found = json.loads(source.read_text())
    PAGE.write_text(page(text, found))
    for name, draw in (("scaling", speed_curves), ("scaling-memory", memory_curves)):
        save(draw(found["rows"]), ROOT / "bench/results" / f"{source.stem}-{name}.svg")


if __name__ == "__main__":
    main()

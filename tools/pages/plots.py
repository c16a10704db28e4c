"""The pictures of what the races found: highlights, all speed-ups, and memory against the inner steps."""

import re
from collections import defaultdict

import matplotlib.pyplot as plt
from style import save

from measure import results
from pages import highlights

NAMES = {"ext": "fastmeta", "general": "general engine"}  # in the legend of a picture


def draw(found, stem):
    """<stem>-highlights.svg, <stem>-speedups.svg and <stem>-memory.svg, each where there is something to show; their paths."""
    pictures = {"highlights": chosen(found), "speedups": speedups(found["rows"]), "memory": memory(found["tables"])}
    paths = []
    for name, figure in pictures.items():
        if figure:
            paths.append(stem.with_name(f"{stem.name}-{name}.svg"))
            save(figure, paths[-1])
    return paths


def chosen(found):
    """A bar for each highlight below its words, the greatest first, as wide as a phone can show; None where one was not raced."""
    try:
        rows = highlights.rows_of(found, highlights.HIGHLIGHTS)
    except ValueError:
        return None
    bars = [(results.speedup(row)[1], words) for row, words in zip(rows, highlights.HIGHLIGHTS.values(), strict=True)]
    bars.sort(reverse=True)
    figure, ax = plt.subplots(figsize=(5.6, 0.46 * len(bars) + 0.8))
    for place, (times, _) in enumerate(bars):
        ax.barh(place, times, height=0.4, color="C0" if times >= 1.05 else "0.6")
        ax.text(max(times, 1) + 0.06, place, f"{times:.1f}x", va="center")
    places = [place - 0.22 for place in range(len(bars))]
    ax.set_yticks(places, [words for _, words in bars], ha="left", va="bottom")
    plt.setp(ax.get_yticklabels(), bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    ax.tick_params(axis="y", length=0, pad=-3)
    ax.axvline(1, color="0.3", linestyle="--", linewidth=1, zorder=0)
    ax.set(ylim=(len(bars) - 0.6, -0.8), xlim=(0, 1.12 * bars[0][0]))
    ax.set_xlabel(f"speed-up over the fastest alternative ({results.threads(rows[0])}, 1 = as fast)")
    return figure


def speedups(rows):
    """A bar from 1 for each workload of an op or learner on the most threads, coloured by op; None without rows to show. Rows with
    sizes are those of curves, the integrations have a table of their own."""
    most = max((row["threads"] for row in rows), default=0)
    raced = [
        row for row in rows
        if row["threads"] == most and not row["sizes"] and row["op"] not in ("threads", "integrations") and results.speedup(row)
    ]  # fmt: skip
    if not raced:
        return None
    ops = list(dict.fromkeys(row["op"] for row in raced))
    figure, ax = plt.subplots(figsize=(8.8, 0.21 * len(raced) + 1.2))
    for place, row in enumerate(raced):
        name, times = results.speedup(row)
        ax.barh(place, times - 1, left=1, height=0.7, color=f"C{ops.index(row['op']) % 4}")
        ax.text(1.03 * max(times, 1), place, f"{times:.2f}x {name}", va="center", fontsize=8)
    ax.set_yticks(range(len(raced)), [row["workload"] for row in raced], fontsize=8)
    ax.axvline(1, color="0.6", linestyle="--", linewidth=1)
    ax.set(xscale="log", ylim=(len(raced) - 0.4, -0.6))
    ax.set_xlim(right=3 * ax.get_xlim()[1])
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel(f"speed-up over the fastest alternative ({results.threads(raced[0])})")
    return figure


def memory(tables):
    """Peaks against K, of the workloads that name it in tables of MiB."""
    curves = defaultdict(lambda: defaultdict(list))
    for rows in (rows for title, rows in tables.items() if "MiB" in title):
        for workload, cells in rows.items():
            if steps := re.search(r" K(\d+)", workload):
                for way, mib in cells.items():
                    curves[workload.replace(steps[0], "")][NAMES.get(way, way)].append((int(steps[1]), mib))
    curves = {title: ways for title, ways in curves.items() if any(len(points) > 1 for points in ways.values())}
    if not curves:
        return None
    figure, axes = plt.subplots(1, len(curves), figsize=(4.2 * len(curves), 3.8), squeeze=False)
    for ax, (title, ways) in zip(axes.flat, curves.items(), strict=True):
        for way, points in ways.items():
            ax.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=way)
        ax.set(xscale="log", yscale="log", xlabel="inner steps K", ylabel="peak memory (MiB)")
        steps = sorted({k for points in ways.values() for k, _ in points})
        ax.set_xticks(steps, map(str, steps))
        ax.set_xticks([], minor=True)
        ax.set_title(title, fontsize=8)
        ax.legend(fontsize=8)
    return figure

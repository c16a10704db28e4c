"""Writes what model.py predicts for the benches into tools/gpu.md, between its markers: `make gpu-model`."""

import re

from gpu import model
from gpu import race as gpu_race
from harness.places import ROOT

DOCS = ROOT / "tools/gpu.md"
BEGIN, END = "<!-- gpu-model: make gpu-model writes what follows -->\n", "<!-- gpu-model: end -->\n"


def predictions():
    """{group: kernels} of every bench that has a prediction."""
    found = {}

    def record(group, contenders, launches=None, **_):
        if launches and " sqeuclidean " not in group:  # as euclidean
            found[group] = launches

    for function, arguments in gpu_race.in_order():
        function(record, **arguments)
    return dict(sorted(found.items()))


def row(group, kernels):
    launches = model.launches_on(model.CARDS["H100"], kernels)
    count, size, flops = (sum(of) for of in zip(*((x.count, x.bytes, x.flops) for x in launches), strict=True))
    times = [
        " / ".join(f"{1e6 * model.seconds(card, kernels, way):.0f}" for way in model.LATENCY)
        for card in model.CARDS.values()
    ]
    layers = " (by layers)" if any("by layers" in x.name for x in launches) else ""
    cells = [group, f"{count}{layers}", f"{size / 1e6:.2f}", f"{flops / 1e6:.1f}", *times]
    return f"| {' | '.join(cells)} |"


def table():
    header = ["workload", "launches", "MB", "Mflop", *(f"{name}, us" for name in model.CARDS)]
    lines = [f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
    return "\n".join([*lines, *(row(group, kernels) for group, kernels in predictions().items())]) + "\n"


def main():
    text = DOCS.read_text()
    found = re.search(f"{re.escape(BEGIN)}.*{re.escape(END)}", text, re.S)
    if not found:
        raise SystemExit(f"model_table: {DOCS.name} must have the markers {BEGIN.strip()} and {END.strip()}")
    DOCS.write_text(text.replace(found[0], BEGIN + table() + END))


if __name__ == "__main__":
    main()

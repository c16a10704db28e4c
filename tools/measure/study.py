"""Pictures and tables of the scaling study, from what `make scaling` wrote: `make study` writes docs/performance.md between its markers."""

import json
import re

from bench_scaling import NOISE
from style import save

from harness.places import ROOT
from measure import curves, plan
from pages.tables import replaced, table

PAGE = ROOT / "docs/performance.md"
PARTS = ("curves", "costs", "efficiencies", "noise")
BEGIN = re.compile(r"<!-- make study writes curves from here, of (bench/results/scaling/\S+\.json) -->")


def study(found):
    """{part: lines between its markers} and {name: figure}."""
    rows, machine = found["rows"], found["machine"]
    sigma, factors = plan.spread(rows)
    plans = plan.plans(found)
    scaled = {name: plan.efficiencies(of_name.workload, factors) for name, of_name in plans.items()}
    lines = {
        "curves": [
            f"{machine['device']} ({machine['instructions']}), torch {machine['torch']}, {machine['date']}, float32:",
            "",
            *table(curves.HEADS, curves.cells(rows)),
        ],
        "costs": table(plan.COSTS, plan.cost_cells(plans)),
        "efficiencies": [
            f"Deviation of the logarithm of a rank's times: {sigma:.3f}.",
            "",
            *table(plan.EFFICIENCIES, plan.efficiency_cells(plans, scaled, factors)),
        ],
        "noise": table(
            ("trained for", "noise scale, tasks"),
            [(stage, f"{cells['tasks']:,.0f}") for stage, cells in found["tables"][NOISE].items()],
        ),
    }
    pictures = {
        "scaling": curves.speed_curves(rows),
        "scaling-memory": curves.memory_curves(rows),
        "cluster": plan.picture(scaled),
    }
    return lines, pictures


def markers(text):
    """{part: (begin, end)}; the first one names the file."""
    found = BEGIN.search(text)
    begins = [found[0], *(f"<!-- make study writes {part} from here -->" for part in PARTS[1:])]
    return {part: (begin, f"<!-- make study: {part} to here -->") for part, begin in zip(PARTS, begins, strict=True)}


def page(text, lines):
    """The page anew."""
    for part, (begin, end) in markers(text).items():
        text = replaced(text, ["", *lines[part]], begin, end)
    return text


def main():
    text = PAGE.read_text()
    source = ROOT / BEGIN.search(text)[1]
    lines, pictures = study(json.loads(source.read_text()))
    PAGE.write_text(page(text, lines))
    for name, figure in pictures.items():
        save(figure, ROOT / "bench/results" / f"{source.stem}-{name}.svg")


if __name__ == "__main__":
    main()

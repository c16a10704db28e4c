"""Tables and pictures of the files in examples/results, into docs/reproductions.md and docs/heads.md: `make reproductions`.

Nothing is trained here: examples write those files. Published figures are the papers' own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import figures
import records
import runs
import table as equal

from harness.places import ROOT
from pages import reached
from pages.reached import NAMES, SETTINGS
from pages.tables import replaced, table

Row = dict[str, Any]
RESULTS, PICTURES = ROOT / "examples/results", ROOT / "docs/pictures"
PAGE, LEARNERS, OF_HEADS = (ROOT / f"docs/{name}.md" for name in ("reproductions", "learners", "heads"))
HEADS = {"supcon": "SupCon", "protonet": "ProtoNet", "pixels": "none: pixels"}
OMNIGLOT = {  # %, in the order of SETTINGS; the papers' own
    "protonet": (98.8, 96.0, 99.7, 98.9),
    "matching-net": (98.1, 93.8, 98.9, 98.5),
    "maml": (98.7, 95.8, 99.9, 98.9),
    "meta-sgd": (99.53, 95.93, 99.93, 98.97),
    "reptile": (97.68, 89.43, 99.48, 97.12),
    "imaml": (99.50, 96.18, 99.74, 99.14),  # Hessian-free, as ours
    "anil": (None, 96.2, None, 98.0),
}
AGAIN = {  # the same by others, who ran the methods anew
    "protonet": (98.2, 95.8, 99.4, 98.6),
    "matching-net": (92.0, 75.6, 92.8, 77.8),
    "maml": (98.4, 91.0, 99.4, 94.4),
}
SINUSOID = {  # mean squared error after inner steps, by paper, learner, shots; Meta-SGD's sinusoids have a frequency of their own
    "MAML's paper": {("maml", 5): {1: 0.67, 5: 0.38, 10: 0.35}}
}
DIVERGES = 10.0  # an error above is far worse than that without a step


def of(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows that have these values, in the order of NAMES."""
    return sorted(records.of(rows, **wanted), key=lambda row: list(NAMES).index(row["learner"]))


def of_published() -> list[str]:
    """What papers and others have, a line for each learner."""
    whose = {"its paper": OMNIGLOT, "others": AGAIN}
    cells = [
        [NAMES[learner], name, *(str(x or "") for x in of_them[learner])]
        for learner in NAMES for name, of_them in whose.items() if learner in of_them
    ]  # fmt: skip
    return table(["learner", "by", *reached.settings()], cells)


def of_sinusoid(rows: list[Row]) -> list[str]:
    """A table for each family of tasks."""
    lines = []
    for low, high in dict.fromkeys(tuple(row["frequency"]) for row in rows):
        own = low == high == 1
        heads = ["shots", "learner", "after 1 inner step", "5", "10", *(["published"] if own else [])]
        cells = []
        for shots in (5, 10, 20):
            for learner in ("maml", "meta-sgd"):
                found = of(rows, learner=learner, shots=shots, frequency=[low, high])
                seeds = sorted(found, key=lambda row: row["seed"])
                if seeds:
                    errors = [one_or_all([error(row, steps) for row in seeds]) for steps in (1, 5, 10)]
                    cells.append([str(shots), NAMES[learner], *errors, *([theirs(learner, shots)] if own else [])])
        title = "MAML's sinusoids" if own else f"With a frequency in [{low:g}, {high:g}] for each task"
        lines += [f"{title}:", "", *table(heads, cells)]
    return lines


def error(row: Row, steps: int) -> str:
    found = row["mse"][str(steps)]
    return "diverges" if found is None or found[0] > DIVERGES else f"{found[0]:.3f}"


def one_or_all(cells: list[str]) -> str:
    return ", ".join(cells if len({*cells}) > 1 else cells[:1])


def theirs(learner: str, shots: int) -> str:
    found = {paper: of_paper[learner, shots] for paper, of_paper in SINUSOID.items() if (learner, shots) in of_paper}
    return "; ".join(f"{', '.join(f'{e:.2f}' for e in curve.values())} ({paper})" for paper, curve in found.items())


def of_plain(rows: list[Row]) -> list[str]:
    cells = [
        [row["what"], f"{row['ways']}-way", *("{:.1f} ± {:.1f} %".format(*row[way]) for way in ("fastmeta", "plain"))]
        for row in rows
    ]
    return table(["learner, Conv4", "test", "fastmeta", "plain PyTorch"], cells)


def of_heads(rows: list[Row]) -> list[str]:
    """For each budget, what trained the encoder; steps, seconds and, in each setting, the mean over the seeds, of its intervals too,
    and the range."""
    cells = []
    for budget, name in sorted({(row["budget"] or 0, row["learner"]) for row in rows}):
        ours = [row for row in rows if (row["budget"] or 0, row["learner"]) == (budget, name)]
        settings = [[row["accuracy"] for row in ours if (row["ways"], row["shots"]) == setting] for setting in SETTINGS]
        steps = f"{fmean(row['steps'] for row in ours):.0f}" if budget else ""
        cells.append([HEADS[name], f"{budget:.0f} s" if budget else "", steps, *map(over_seeds, settings)])
    return table(["encoder", "processor time", "steps", *reached.settings()], cells)


def over_seeds(found: list[list[float]]) -> str:
    means, intervals = zip(*found, strict=True)
    spread = f" ({min(means):.1f} to {max(means):.1f})" if len({*means}) > 1 else ""
    return f"{fmean(means):.1f} ± {fmean(intervals):.1f}{spread}"


def pages() -> dict[Path, str]:
    """What the pages must hold."""
    names = ("sinusoid", "lake", "lake_search", "plain", "heads", "table", "generative", "table_search")
    sinusoid_rows, lake_rows, practices, plain_rows, heads_rows, equal_rows, made_rows, searched = (
        records.load(RESULTS / f"{name}.json") for name in names
    )
    parts = {
        PAGE: {
            "published": of_published(), "equal": reached.on_equal_terms(equal_rows),
            "search": reached.of_search(searched), "plain": of_plain(plain_rows), "sinusoid": of_sinusoid(sinusoid_rows),
            "made": reached.of_made(made_rows), "lake": reached.of_lake(lake_rows),
            "practices": reached.of_practices(practices),
        },
        OF_HEADS: {"heads": of_heads(heads_rows)},
        LEARNERS: {"reached": reached.by_learner(equal_rows)},
    }  # fmt: skip
    found = {}
    for page, of_page in parts.items():
        text = page.read_text()
        for name, lines in of_page.items():
            text = replaced(
                text, lines, f"<!-- {name}: make reproductions writes from here -->\n", f"<!-- {name}: to here -->"
            )
        found[page] = text
    return found


def draw(folder: Path) -> None:
    figures.accuracies(folder / "omniglot.svg", panels(records.load(RESULTS / "table.json")))
    rows = records.of(records.load(RESULTS / "sinusoid.json"), frequency=[1.0, 1.0])
    figures.inner_steps(folder / "sinusoid.svg", {f"{shots} shots": curves(rows, shots) for shots in (5, 10, 20)})

    rows = records.load(RESULTS / "lake.json")
    if rows:
        draw_runs(folder / "lake.svg", rows)


def panels(rows: list[Row]) -> dict[str, list[figures.Found]]:
    """For each setting the learners, of the trainings with the most time."""
    longest, found = reached.longest(rows), dict[str, list[figures.Found]]()
    for place, ((ways, shots), title) in enumerate(zip(SETTINGS, reached.settings(), strict=True)):
        for learner, name in NAMES.items():
            cell = records.of(longest, learner=learner, ways=ways, shots=shots)
            accuracy = equal.over(cell) if cell else None
            if accuracy is not None:
                published = OMNIGLOT.get(learner, [None] * len(SETTINGS))[place]
                found.setdefault(title, []).append(figures.Found(name, *accuracy, published))
    return found


def draw_runs(path: Path, rows: list[Row]) -> None:
    """The two best trainings by their runs, and what the best mistakes as far as its row has it."""
    best = sorted((row for row in rows if row["error"]), key=lambda row: row["error"][0])[:2]
    errors = {f"{reached.name_of(row)}, {row['trained']}": row["of_run"] for row in best}
    wrong = next((row["mistaken"] for row in best if row["mistaken"]), [])
    figures.runs(path, errors, [(w["run"], [runs.pixels(w[name]) for name in ("drawn", "is", "taken")]) for w in wrong])


def curves(rows: list[Row], shots: int) -> dict[str, dict[int, float]]:
    """By learner and paper: the error after so many steps, of ours the mean over the seeds, as far as it does not diverge."""
    found: dict[str, dict[int, float]] = {}
    for learner in ("maml", "meta-sgd"):
        seeds = of(rows, learner=learner, shots=shots)
        for steps in (0, 1, 5, 10) if seeds else ():
            errors = [row["mse"].get(str(steps)) for row in seeds]
            if all(error is not None and error[0] <= DIVERGES for error in errors):
                found.setdefault(f"{NAMES[learner]}, fastmeta", {})[steps] = fmean(error[0] for error in errors)
    for paper, of_paper in SINUSOID.items():
        for (learner, k), curve in of_paper.items():
            if k == shots:
                found[f"{NAMES[learner]}, {paper}"] = curve
    return found


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text)
    PICTURES.mkdir(exist_ok=True)
    draw(PICTURES)

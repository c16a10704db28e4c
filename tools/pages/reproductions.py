"""Tables and pictures of the files in examples/results, into docs/reproductions.md and docs/heads.md: `make reproductions`.

Nothing is trained here: omniglot.py, sinusoid.py, lake.py and heads.py write those files. Published figures are the papers' own.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import figures
import learners
import recipes
import records
import runs

from harness.places import ROOT
from pages import reached
from pages.reached import NAMES, SETTINGS
from pages.tables import replaced, table

Row = dict[str, Any]
RESULTS, PICTURES = ROOT / "examples/results", ROOT / "docs/pictures"
PAGE, LEARNERS, OF_HEADS = (ROOT / f"docs/{name}.md" for name in ("reproductions", "learners", "heads"))
COLUMNS = 76  # of a line of code on the site
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


def published(row: Row, whose: dict[str, tuple[float | None, ...]] = OMNIGLOT) -> float | None:
    figures_of = whose.get(row["learner"])
    return figures_of[SETTINGS.index((row["ways"], row["shots"]))] if figures_of else None


def percent(row: Row) -> str:
    return "{:.1f} ± {:.1f}".format(*row["accuracy"])


def of_omniglot(rows: list[Row]) -> list[str]:
    heads = [
        "learner",
        "accuracy, %",
        "test episodes",
        "published, %",
        "by others, %",
        "training episodes",
        "processor time",
    ]
    lines = []
    for ways, shots in SETTINGS:
        cells = []
        for row in of(rows, ways=ways, shots=shots):
            recipe = row["recipe"]
            tasks, steps = recipe["tasks"], recipe["steps"]
            others = (str(published(row, whose) or "") for whose in (OMNIGLOT, AGAIN))
            cells.append(
                [label(row), percent(row), str(row["episodes"]), *others, str(tasks * steps), f"{row['seconds']:.0f} s"]
            )
        if cells:
            lines += [f"{ways}-way {shots}-shot:", "", *table(heads, cells)]
    return lines


def label(row: Row) -> str:
    wide = row["network"].removeprefix("Conv4-")
    return NAMES[row["learner"]] + ("" if wide == "32" else f", {wide} channels")


def commands(rows: list[Row]) -> list[str]:
    """One for each training, with the options that are not the recipe's."""
    tested: dict[tuple[str, str], list[Row]] = {}
    for row in (row for ways, shots in SETTINGS for row in of(rows, ways=ways, shots=shots)):
        trained = "" if row["learner"] in learners.METRIC else f"{row['ways']}-way {row['shots']}-shot"  # else for all
        tested.setdefault((options(row), trained), []).append(row)
    lines = []
    for (words, _), found in tested.items():
        ways, shots = (dict.fromkeys(str(row[name]) for row in found) for name in ("ways", "shots"))
        lines += wrapped(f"python examples/omniglot.py $O {words} --ways {' '.join(ways)} --shots {' '.join(shots)}")
    return ["", *lines, ""]


def first_commands(rows: list[Row]) -> dict[str, str]:
    """Of each learner the one for 5 ways and 1 shot."""
    return {row["learner"]: f"python examples/omniglot.py {options(row)}" for row in of(rows, ways=5, shots=1)}


def wrapped(command: str) -> list[str]:
    """A command as code, in lines that fit the site's column."""
    lines = textwrap.wrap(command, COLUMNS - 2, subsequent_indent="    ", break_on_hyphens=False)
    return ["    " + line for line in " \\\n".join(lines).split("\n")]


def options(row: Row) -> str:
    words = ["--learner", row["learner"]]
    if row["network"] != "Conv4-32":
        words += ["--hidden", row["network"].removeprefix("Conv4-")]
    if row["embedding"] is not None:
        words += ["--embedding", f"{row['embedding']['learner']}.pt"]
    recipe = recipes.RECIPES[row["learner"]]._asdict()
    for name in recipes.OF_RECIPE:
        if row["recipe"][name] != recipe[name]:
            words += ["--" + name.replace("_", "-"), str(row["recipe"][name])]
    if row["seed"]:
        words += ["--seed", str(row["seed"])]
    return " ".join([*words, "--eval-tasks", str(row["episodes"])])


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
    heads = [f"{ways}-way {shots}-shot" for ways, shots in SETTINGS]
    return table(["encoder", "processor time", "steps", *heads], cells)


def over_seeds(found: list[list[float]]) -> str:
    means, intervals = zip(*found, strict=True)
    spread = f" ({min(means):.1f} to {max(means):.1f})" if len({*means}) > 1 else ""
    return f"{fmean(means):.1f} ± {fmean(intervals):.1f}{spread}"


def pages() -> dict[Path, str]:
    """What the pages must hold."""
    omniglot_rows, sinusoid_rows, lake_rows, plain_rows, heads_rows, equal_rows, made_rows, short_rows = (
        records.load(RESULTS / f"{name}.json")
        for name in ("omniglot", "sinusoid", "lake", "plain", "heads", "table", "generative", "settings")
    )
    parts = {
        PAGE: {
            "omniglot": of_omniglot(omniglot_rows), "commands": commands(omniglot_rows), "plain": of_plain(plain_rows),
            "sinusoid": of_sinusoid(sinusoid_rows), "lake": reached.of_lake(lake_rows),
            "equal": reached.on_equal_terms(equal_rows), "made": reached.of_made(made_rows),
            "settings": reached.of_search(short_rows),
        },
        OF_HEADS: {"heads": of_heads(heads_rows)},
        LEARNERS: {"reached": reached.by_learner(equal_rows, omniglot_rows, first_commands(omniglot_rows))},
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
    rows = records.load(RESULTS / "omniglot.json")
    panels = {
        f"{ways}-way {shots}-shot": [
            figures.Found(label(row), *row["accuracy"], published(row)) for row in of(rows, ways=ways, shots=shots)
        ]
        for ways, shots in SETTINGS
    }
    figures.accuracies(folder / "omniglot.svg", {title: panel for title, panel in panels.items() if panel})
    rows = records.of(records.load(RESULTS / "sinusoid.json"), frequency=[1.0, 1.0])
    figures.inner_steps(folder / "sinusoid.svg", {f"{shots} shots": curves(rows, shots) for shots in (5, 10, 20)})

    rows = records.load(RESULTS / "lake.json")
    if rows:
        draw_runs(folder / "lake.svg", rows)


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

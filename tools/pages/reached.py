"""Tables of what learners reach, of the files that table.py, lake_table.py and generative.py write."""

from __future__ import annotations

import itertools
from statistics import fmean
from typing import Any

import generative
import lake_table
import recipes
import records
import table as equal
from practice import Practice

from pages.tables import table

Row = dict[str, Any]
NAMES = {
    "protonet": "ProtoNet", "matching-net": "MatchingNet", "matching-net-fce": "MatchingNet, full context", "maml": "MAML",
    "meta-sgd": "Meta-SGD", "anil": "ANIL", "proto-maml": "ProtoMAML", "reptile": "Reptile", "imaml": "iMAML",
    "leo": "LEO, on ProtoNet's embeddings",
}  # fmt: skip
SETTINGS = ((5, 1), (20, 1), (5, 5), (20, 5))  # ways, shots
LAKE = (  # error in %: Lake et al. 2015; 5 alphabets: background small1 and small2
    ("People", "", 4.5),
    ("Bayesian program learning", "30", 3.3),
    ("Bayesian program learning", "5", "4.3, 4.0"),
    ("Siamese network", "30", 8.0),
    ("Convolutional network", "30", 13.5),
    ("Convolutional network", "5", "24.0, 22.3"),
    ("Modified Hausdorff distance", "none", 38.8),
)
NONE = ["Nobody has run it yet.", ""]
SETS = {"small1": "small1 (5 alphabets)", "small2": "small2 (5)", "both": "both (8)"}  # that Lake's runs are trained on


def on_equal_terms(rows: list[Row]) -> list[str]:
    """A line for each learner and budget, a column for each setting."""
    if not rows:
        return NONE
    heads = ["learner", *settings(), "seeds", "training episodes", "processor time"]
    lines = []
    for seconds in sorted({row["budget"] for row in rows}):
        for learner in NAMES:
            found = records.of(rows, learner=learner, budget=seconds)
            if found:
                cells = [percent(records.of(found, ways=ways, shots=shots)) for ways, shots in SETTINGS]
                seeds = len({row["seed"] for row in found})
                trained = [records.of(found, ways=ways) for ways in (5, 20)]
                seen = ", ".join(dict.fromkeys(equal.episodes(of) for of in trained if of))
                lines.append([NAMES[learner], *cells, str(seeds), seen, f"{seconds:g} s"])
    return table(heads, lines)


def longest(rows: list[Row]) -> list[Row]:
    """Of the trainings with the most time."""
    return records.of(rows, budget=max((row["budget"] for row in rows), default=None))


def settings() -> list[str]:
    return [f"{ways}-way {shots}-shot" for ways, shots in SETTINGS]


def of_search(rows: list[Row]) -> list[str]:
    """The longest trainings of a search's log, by learner and ways, the best first."""
    heads = ["learner", "ways", "training episodes", "in place of the recipe's", "accuracy, %"]
    order = {name: place for place, name in enumerate(NAMES)}
    lines = []
    for row in sorted(longest(rows), key=lambda row: (order[row["learner"]], row["trained_ways"], -mean_of(row))):
        lines.append(
            [NAMES[row["learner"]], str(row["trained_ways"]), equal.episodes([row]), changes(row), percent([row])]
        )
    return table(heads, lines)


def mean_of(row: Row) -> float:
    return float(row["accuracy"][0]) if row["accuracy"] else 0.0


def changes(row: Row) -> str:
    own, told = recipes.RECIPES[row["learner"]]._asdict(), []
    for name, value in row["recipe"].items():
        if isinstance(value, dict):
            told += [f"{option} {x}" for option, x in value.items() if own[name].get(option) != x]
            told += [f"no {option} {x}" for option, x in own[name].items() if option not in value]
        elif value != own[name]:
            told.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(told)


def percent(rows: list[Row]) -> str:
    return equal.said(equal.over(rows)).removesuffix(" %") if rows else ""


def of_lake(rows: list[Row]) -> list[str]:
    """Others, then ours with the most time: a line for each learner, a column for each training set."""
    others = table(["who", "alphabets trained on", "error, %"], [[a, b, str(c)] for a, b, c in LAKE])
    lines = []
    for learner in (*NAMES, lake_table.BEST):
        if found := records.of(longest(rows), learner=learner):
            sets = [records.of(found, trained=trained) for trained in SETS]
            errors = [error_of(of[0]) if of else "" for of in sets]
            lines.append([name_of(found[0]), *errors, f"{found[0]['budget']:g} s"])
    return [*others, "fastmeta:", "", *table(["learner", *SETS.values(), "processor time"], lines)] if lines else others


def error_of(row: Row) -> str:
    return "{:.1f} ± {:.1f}".format(*row["error"]) if row["error"] else "diverged"


def of_practices(rows: list[Row]) -> list[str]:
    """The search's errors of each practice, by training set and rung, with the number of views that suits it better."""
    lines, budgets = [], sorted({row["budget"] for row in rows})
    heads = [f"{trained}, {seconds:g} s" for trained in SETS for seconds in budgets]
    for tried in dict.fromkeys(tuple(row["practice"]) for row in rows):
        cells = []
        for trained, seconds in itertools.product(SETS, budgets):
            found = records.of(rows, trained=trained, budget=seconds, practice=[*tried])
            cells.append(f"{min(mean for mean, _ in found[0]['error'].values()):.1f}" if found else "")
        lines.append([practised(Practice(*tried)), *cells])
    return table(["practice", *heads], lines)


def practised(practice: Practice) -> str:
    own = Practice()._asdict()
    changed = [f"{name} {value}" for name, value in practice._asdict().items() if value != own[name]]
    return ", ".join(changed) or "the default"


def name_of(row: Row) -> str:
    return str(NAMES.get(row["learner"], row["learner"].capitalize()))


def of_made(rows: list[Row]) -> list[str]:
    """By data, shots and classifier the accuracy with each kind of made features: the mean over the seeds, and the seeds' own."""
    if not rows:
        return NONE
    heads = ["data", "shots", "classifier", *generative.MADE]
    lines = []
    for data in dict.fromkeys(row["data"] for row in rows):
        for shots in generative.SHOTS:
            for classifier in generative.CLASSIFIERS:
                cells = []
                for made in generative.MADE:
                    found = records.of(rows, data=data, shots=shots, classifier=classifier, made=made)
                    means = [row["accuracy"][0] for row in sorted(found, key=lambda row: row["seed"])]
                    cells.append(f"{fmean(means):.1f} ({', '.join(f'{x:.1f}' for x in means)})" if means else "")
                lines.append([data, str(shots), classifier, *cells])
    return table(heads, lines)


def by_learner(rows: list[Row]) -> list[str]:
    """Of docs/learners.md: the rows with the most time."""
    heads = ["learner", "5-way 1-shot", "20-way 1-shot", "processor time", "command"]
    lines = []
    for learner, name in NAMES.items():
        if found := records.of(longest(rows), learner=learner):
            cells = [percent(records.of(found, ways=ways, shots=1)) for ways in (5, 20)]
            lines.append(
                [name, *cells, f"{found[0]['budget']:g} s", f"`python examples/omniglot.py --table --only {learner}`"]
            )
    return table(heads, lines)

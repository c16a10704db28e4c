"""One-shot classification within an alphabet, as Lake et al. 2015 test it: 20 runs of 20 characters, each seen once, to tell apart.

--runs: the archive all_runs.zip of github.com/brendenlake/omniglot, python/one-shot-classification. It holds, of each run,
runNN/class_labels.txt, with a line `runNN/test/itemMM.png runNN/training/classKK.png` for each of its 20 new drawings. The learner
is --trained, a file that `omniglot.py --save` wrote, or is trained here as omniglot.py would, with 20 ways and 1 shot.

Metric learners see each new drawing for itself; batch statistics of the others are those of a run's 20 together.

Source: Lake, Salakhutdinov and Tenenbaum 2015, Science 350.
"""

from __future__ import annotations

import argparse
from pathlib import Path, PurePosixPath

import few_shot
import learners
import omniglot
import records
import torch
from common import Estimate, Learner, print_table, run
from torch import Tensor

from fastmeta.data import Episodes, _drawings

LABELS, CLASSES = "class_labels.txt", 20


def load(path: Path) -> dict[str, Episodes]:
    """Each run as one task: support [1, 20, 1, 28, 28], the classes; query, the new drawings, with the classes' numbers."""
    with _drawings.archive(path, "--runs", "--runs") as file:
        names = sorted(name for name in file.members if PurePosixPath(name).name == LABELS)
        found = {PurePosixPath(name).parent.name: _run(path, file, PurePosixPath(name)) for name in names}
    if not found:
        raise ValueError(f"--runs must hold runNN/{LABELS}, got none in {path}")
    if len(found) != len(names):
        raise ValueError(f"--runs must hold every run once, got {len(names)} of {len(found)} names in {path}")
    return found


def _run(path: Path, file: _drawings.Archive, labels: PurePosixPath) -> Episodes:
    root = labels.parent.parent  # what the names in the file are relative to
    text = file.read(str(labels)).decode(errors="replace")
    pairs = [line.split() for line in text.splitlines() if line.strip()]
    items, answers = ([pair[side] for pair in pairs if len(pair) == 2] for side in (0, 1))
    if not len(pairs) == len({*items}) == len({*answers}) == CLASSES:
        raise ValueError(
            f"--runs must pair {CLASSES} drawings with {CLASSES} classes, got something else in {labels} of {path}"
        )
    classes = sorted(answers)
    drawn = [[str(root / name) for name in names] for names in (classes, items)]
    for name in (*drawn[0], *drawn[1]):
        if name not in file.members:
            raise ValueError(f"--runs must hold every drawing of {labels}, got none: {name} of {path}")
    support, query = (_drawings.scaled(file.drawings(names), learners.SIDE).float() / 255 for names in drawn)
    numbers = torch.tensor([classes.index(answer) for answer in answers])
    return Episodes(support[None], torch.arange(CLASSES)[None], query[None], numbers[None])


@torch.no_grad()
def errors(learner: Learner, runs: dict[str, Episodes]) -> Tensor:
    """The wrong answers of each run in percent, [runs]."""
    learner.eval()
    wrong = [(learner(*tasks[:3]).argmax(-1) != tasks.query_y).float().mean() for tasks in runs.values()]
    return 100 * torch.stack(wrong)


def main(args: argparse.Namespace) -> None:
    if args.results:
        records.load(args.results)  # a broken one is told before the training
    runs = {name: tasks.to(args.device) for name, tasks in load(args.runs).items()}
    if args.trained is not None:
        learner, settings = omniglot.load(args.trained)
        name, ways = settings["learner"], settings["ways"]
        learner.to(args.device)
    else:
        args.ways, args.shots, name, ways = [CLASSES], [1], args.learner, CLASSES
        learner = omniglot.train(few_shot.load(args)[0], args).learner
    if name not in learners.METRIC and ways != CLASSES:
        raise ValueError(f"--trained must have {CLASSES} outputs, got a {name} of {ways}")
    found = errors(learner, runs)
    estimate = Estimate.of(found)
    print_table(["run", "error"], [[run, f"{error:.0f} %"] for run, error in zip(runs, found.tolist(), strict=True)])
    print(f"\n{name}: {estimate:.1f} % wrong in {len(runs)} runs (95 % CI)")
    if args.results:
        row = {"learner": name, "seed": args.seed, "error": [round(value, 2) for value in estimate], "runs": len(runs)}
        records.add(args.results, row)


def options() -> argparse.ArgumentParser:
    parser = omniglot.training_options(__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="the archive of the runs")
    parser.add_argument("--trained", type=Path, help="a learner that omniglot.py saved; None: train one")
    return parser


if __name__ == "__main__":
    run(options(), main)

"""One-shot classification within an alphabet, as Lake et al. 2015 test it: 20 runs of 20 characters, each seen once, to tell apart.

--runs: the archive all_runs.zip of github.com/brendenlake/omniglot, python/one-shot-classification. It holds, of each run,
runNN/class_labels.txt, with a line `runNN/test/itemMM.png runNN/training/classKK.png` for each of its 20 new drawings. The learner
is --trained, a file that `omniglot.py --save` wrote, or is trained here as omniglot.py would, with 20 ways and 1 shot.

Metric learners see each new drawing for itself; batch statistics of the others are those of a run's 20 together.

Source: Lake, Salakhutdinov and Tenenbaum 2015, Science 350.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import few_shot
import lake_table
import learners
import omniglot
import recipes
import records
from common import Estimate, count, print_table, run
from runs import CLASSES, errors, load


def main(args: argparse.Namespace) -> None:
    if args.results:
        records.load(args.results)  # a broken one is told before the training
    if args.table:
        return lake_table.main(args)
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
    parser.add_argument(
        "--table", action="store_true", help="all learners on all sets into --results: see lake_table.py"
    )
    parser.add_argument(
        "--budget", type=float, default=600.0, help="--table: seconds of processor time of each training"
    )
    parser.add_argument("--sets", nargs="+", choices=lake_table.SETS, help="--table: train on these; None: all")
    only = [*recipes.RECIPES, lake_table.BEST]
    parser.add_argument("--only", nargs="+", choices=only, help="--table: these learners; None: all")
    parser.add_argument("--candidates", type=count, help="--table: so many practices are tried; None: all")
    parser.add_argument(
        "--search", type=Path, default=lake_table.SEARCH, help="--table: the log of omniglot.py --table"
    )
    parser.add_argument("--work", type=Path, default=Path("build/lake"), help="--table: folder of the checkpoints")
    return parser


if __name__ == "__main__":
    run(options(), main)

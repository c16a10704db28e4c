"""The examples run, and print what they promise."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
RUNS = [
    ("sinusoid.py", ["--learner", "maml", "--steps", "3", "--eval-tasks", "5"], "MSE on 5 unseen tasks"),
    ("sinusoid.py", ["--learner", "meta-sgd", "--steps", "3", "--eval-tasks", "5"], "MSE on 5 unseen tasks"),
    ("few_shot.py", ["--learner", "protonet", "--steps", "2", "--eval-tasks", "5"], "accuracy on 5 unseen episodes"),
]


@pytest.mark.parametrize(("script", "options", "expected"), RUNS, ids=lambda value: str(value)[:24])
def test_runs(script, options, expected):
    done = subprocess.run([sys.executable, EXAMPLES / script, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout and "speed-up" in done.stdout


def test_omniglot_needs_a_root():
    done = subprocess.run(
        [sys.executable, EXAMPLES / "few_shot.py", "--data", "omniglot"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "root" in done.stderr

"""examples/train.py in this process, and what its files hold, for the tests of it."""

import importlib
import sys
import types

import pytest
import torch

from harness.places import ROOT

EXAMPLES = ROOT / "examples"
SMALL = "--tasks 4 --validation-tasks 8 --eval-tasks 8 --hidden 4"
LEO = f"--learner leo --data glyphs {SMALL} --lr 1e-2 --every 2".split()  # draws noise in every step
MAML = f"--learner maml --data sinusoid {SMALL} --lr 1e-2 --every 2".split()


@pytest.fixture(name="modules", scope="module", autouse=True)
def modules_fixture(tmp_path_factory):
    """The examples importable, one thread, and one cache of the glyphs for all processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for name in ("checkpoint", "common", "few_shot", "learners", "persist", "problem", "ranks", "train"):
            patch.delitem(sys.modules, name, raising=False)  # another folder's
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield types.SimpleNamespace(train=importlib.import_module("train"), persist=importlib.import_module("persist"))
        torch.set_num_threads(threads)


@pytest.fixture(name="train")
def train_fixture(modules):
    """Trains in this process with the given options."""

    def run(*words):
        args = modules.train.options().parse_args([*map(str, words)])
        torch.manual_seed(args.seed)
        modules.train.main(args)

    return run


def state(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


def steps_of(out):
    return [int(line.split(",")[0]) for line in (out / "log.csv").read_text().splitlines()[1:]]


@pytest.fixture(name="trained", scope="module")
def trained_fixture(modules, tmp_path_factory):
    """A folder of four steps."""
    out = tmp_path_factory.mktemp("trained")
    modules.train.main(modules.train.options().parse_args([*MAML, "--out", str(out), "--steps", "4"]))
    return out

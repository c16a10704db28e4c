"""What a checkpoint of examples/train.py must hold: each value that no training comes to is named with the file, before any is taken."""

import copy
import random

import pytest
import torch

from harness.damage import same, training
from harness.trainings import MAML, modules_fixture, state, trained_fixture  # noqa: F401

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def run(modules, trained):
    """The same training, at its beginning."""
    args = modules.train.options().parse_args([*MAML, "--out", str(trained)])
    data = modules.train.problem
    data.settle(args)
    return modules.train.Training(args, data.load(args))


def weights(state):
    return state["learner"]["model.0.weight"]


def moments(state, index=0):
    return state["optimiser"]["state"][index]


def put(of, key, value):
    of[key] = value


STATES = {  # by what is said: what happened to the state
    "a training with 'step', got none": lambda s: s.pop("step"),
    "a training without 'epoch', got it": lambda s: put(s, "epoch", 3),
    "settings with 'seed', got none": lambda s: s["settings"].pop("seed"),
    "settings with names, got a list of 0": lambda s: put(s, "settings", []),
    "step from 1 to": lambda s: put(s, "step", -4),
    f"step from 1 to {2**62}, got 4.0": lambda s: put(s, "step", 4.0),
    f"step from 1 to {2**62}, got True": lambda s: put(s, "step", True),
    f"step from 1 to {2**62}, got tensor": lambda s: put(s, "step", torch.tensor(4)),
    "waited from 0 to 4, got 5": lambda s: put(s, "waited", 5),
    "best that is a number, got NoneType": lambda s: put(s, "best", None),
    "sampler.next 16, got 12": lambda s: put(s["sampler"], "next", 12),
    "sampler.next 16, got tensor": lambda s: put(s["sampler"], "next", torch.zeros(9, 9)),
    "sampler.seed 0, got 1": lambda s: put(s["sampler"], "seed", 1),
    "sampler.seed 0, got False": lambda s: put(s["sampler"], "seed", False),
    "sampler.next 20, got 16": lambda s: put(s, "step", 5),
    "sampler with names, got NoneType": lambda s: put(s, "sampler", None),
    "learner with names, got a tensor [3] of": lambda s: put(s, "learner", torch.zeros(3)),
    "learner with 'model.0.weight', got none": lambda s: s["learner"].pop("model.0.weight"),
    "learner without 'model.9.weight', got it": lambda s: put(s["learner"], "model.9.weight", torch.zeros(3)),
    "learner.model.0.weight, a tensor [40, 1] of torch.float32, got a tensor [1, 40]": lambda s: put(
        s["learner"], "model.0.weight", weights(s).T
    ),
    "learner.model.0.weight, a tensor [40, 1] of torch.float32, got a tensor [40, 1] of torch.float64":
        lambda s: put(s["learner"], "model.0.weight", weights(s).double()),
    "learner.model.0.weight, a tensor [40, 1] of torch.float32, got a list of 1": lambda s: put(s["learner"], "model.0.weight", [1.0]),
    "learner.model.0.weight of finite numbers, got NaN or infinity": lambda s: weights(s)[3].fill_(torch.nan),
    "optimiser with names, got a list of 0": lambda s: put(s, "optimiser", []),
    "optimiser with 'state', got none": lambda s: s["optimiser"].pop("state"),
    "optimiser.state with names, got a dict of 0": lambda s: s["optimiser"]["state"].clear(),
    "optimiser.state of 6 parameters, got one of 6": lambda s: put(s["optimiser"]["state"], 6, moments(s)),
    "optimiser.state.0 with 'exp_avg', got none": lambda s: moments(s).pop("exp_avg"),
    "optimiser.state.0.exp_avg, a tensor [40, 1] of torch.float32, got a tensor [40] of": lambda s: put(
        moments(s), "exp_avg", moments(s, 1)["exp_avg"]
    ),
    "optimiser.state.0.exp_avg of finite numbers": lambda s: moments(s)["exp_avg"].fill_(torch.inf),
    "optimiser.state.0.exp_avg_sq of squares, got negative ones": lambda s: moments(s)["exp_avg_sq"].fill_(-1.0),
    "optimiser.state.0.step from 1 to 4, got 400": lambda s: moments(s)["step"].fill_(400),
    "noise of every rank, got a list of 0": lambda s: put(s, "noise", []),
    "noise of every rank, got a tensor [3]": lambda s: put(s, "noise", torch.zeros(3)),
    "noise, a tensor [5056] of torch.uint8, got a tensor [3] of torch.float32": lambda s: put(s, "noise", [[torch.zeros(3)]]),
    "log with names, got NoneType": lambda s: put(s, "log", None),
    "log with 'crc32', got none": lambda s: s["log"].pop("crc32"),
    f"log.bytes from 0 to {2**62}, got -1": lambda s: put(s["log"], "bytes", -1),
    f"log.crc32 from 0 to {2**32 - 1}, got 0.5": lambda s: put(s["log"], "crc32", 0.5),
    "noise that is a generator's, got": lambda s: s["noise"][0][0].fill_(255),
}  # fmt: skip


@pytest.mark.parametrize("said", STATES)
def test_a_state_that_no_training_comes_to_is_named_and_not_taken(run, trained, said):
    path, found, before = trained / "checkpoint.pt", state(trained), copy.deepcopy(run.state_dict())
    STATES[said](found)
    with pytest.raises(ValueError) as raised:
        run.load_state_dict(found, path)
    assert str(raised.value).startswith(f"{path} must hold {said}")
    assert same(run.state_dict(), before)


def test_settings_that_are_no_options_are_told(run, trained):
    path, found = trained / "checkpoint.pt", state(trained)
    for value in (torch.zeros(9), None, "1", [0]):
        found["settings"]["seed"] = value
        with pytest.raises(ValueError, match=f"--resume: --seed must be the checkpoint's .*, got 0 for {path}"):
            run.load_state_dict(found, path)


def test_any_damage_is_refused_or_does_not_matter(modules, tmp_path):
    for name, attack in training(tmp_path, modules.train).items():
        found = [attack(random.Random(seed)) for seed in range(100)]
        assert found.count("refused") > 50, name

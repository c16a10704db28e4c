"""examples/train.py: every learner trains, a resumed training is the undisturbed one bit by bit, dead ranks end the others."""

import importlib
import math
import os
import re
import signal
import subprocess
import sys
import time
import types

import pytest
import torch

from harness.damage import same
from harness.places import ROOT, WITH_TOOLS
from harness.rank_processes import ranks
from harness.trainings import EXAMPLES, LEO, MAML, SMALL, modules_fixture, state, steps_of, train_fixture  # noqa: F401

pytestmark = pytest.mark.cpu


def check_equal(out, other):
    """Two trainings ended alike: checkpoint, best learner, log."""
    assert same(state(out), state(other))
    assert same(torch.load(out / "best.pt"), torch.load(other / "best.pt"))
    assert (out / "log.csv").read_text() == (other / "log.csv").read_text()


@pytest.mark.parametrize("data", ["sinusoid", "glyphs"])
def test_every_learner_trains(train, modules, data, tmp_path, capsys):
    learners = importlib.import_module("learners")
    for learner in learners.OF_SINUSOIDS if data == "sinusoid" else learners.OF_IMAGES:
        out = tmp_path / learner
        train("--learner", learner, "--data", data, "--out", out, "--steps", 3, "--every", 2, *SMALL.split())
        unit = "MSE" if data == "sinusoid" else "% wrong"
        assert re.search(rf"8 unseen tasks: [\d.]+ ± [\d.]+ {unit} \(95 % CI\)", capsys.readouterr().out)
        assert steps_of(out) == [2, 3]
        assert sorted(path.name for path in out.iterdir()) == ["best.pt", "checkpoint.pt", "log.csv"]


@pytest.mark.parametrize("options", [LEO, f"--learner protonet {SMALL} --every 2".split(), MAML])
def test_a_resumed_training_is_the_undisturbed_one_bit_by_bit(train, tmp_path, options):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(*options, "--out", whole, "--steps", 8)
    train(*options, "--out", parts, "--steps", 4)
    halfway = state(parts)
    assert halfway["step"] == 4 and halfway["sampler"] == {"seed": 0, "next": 16}
    torch.rand(7)  # whatever else happened in between
    train(*options, "--out", parts, "--steps", 8, "--resume")
    check_equal(whole, parts)
    assert not same(halfway["learner"], state(whole)["learner"])
    assert steps_of(whole) == [2, 4, 6, 8]


def test_resume_without_a_checkpoint_begins(train, tmp_path):
    train(*MAML, "--out", tmp_path, "--steps", 2, "--resume")
    assert state(tmp_path)["step"] == 2


def test_it_learns(train, tmp_path):
    train(*MAML, "--out", tmp_path, "--steps", 400, "--every", "100", "--tasks", 24, "--validation-tasks", 96)
    found = [float(line.split(",")[2]) for line in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    assert found[-1] < 0.8 * found[0] and state(tmp_path)["best"] == min(found)


def test_it_stops_where_validation_does_not_improve(train, tmp_path):
    train(*MAML, "--out", tmp_path, "--steps", 50, "--every", 1, "--lr", 0, "--patience", 2)
    assert steps_of(tmp_path) == [1, 2, 3]
    train(*MAML, "--out", tmp_path, "--steps", 50, "--every", 1, "--lr", 0, "--patience", 2, "--resume")
    assert steps_of(tmp_path) == [1, 2, 3]


def test_the_best_is_the_first_of_the_lowest(modules, train, tmp_path):
    args = modules.train.options().parse_args([*MAML, "--out", str(tmp_path)])
    args.shots, args.queries, args.inner_lr = 2, 2, 0.1
    training = modules.train.Training(args, importlib.import_module("problem").load(args))
    found = [training.judge(error) for error in (math.nan, 3.0, math.nan, 3.0, 2.0)]
    assert found == [True, True, False, False, True]
    assert (training.best, training.waited) == (2.0, 0)


def test_what_the_user_got_wrong_is_said(train, tmp_path):
    train(*MAML, "--out", tmp_path, "--steps", 2)
    with pytest.raises(ValueError, match="--out must hold no checkpoint, got .*: --resume goes on with it"):
        train(*MAML, "--out", tmp_path, "--steps", 4)
    with pytest.raises(ValueError, match="--resume: --inner-lr must be the checkpoint's 0.01, got 0.5"):
        train(*MAML, "--out", tmp_path, "--steps", 4, "--resume", "--inner-lr", 0.5)
    with pytest.raises(ValueError, match="--data sinusoid is a regression, for maml, .* got --learner leo"):
        train("--learner", "leo", "--data", "sinusoid", "--out", tmp_path)
    assert state(tmp_path)["step"] == 2


def test_tensorboard_gets_what_the_log_gets(train, tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append(f"{step} {name} {value}")

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    train(*MAML, "--out", tmp_path, "--steps", 2, "--tensorboard")
    step, loss, error = (tmp_path / "log.csv").read_text().splitlines()[1].split(",")
    assert written == [(tmp_path, 1), f"{step} loss {loss}", f"{step} error {error}"]


def test_a_crash_while_writing_leaves_the_old_file(modules, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    modules.persist.save(path, {"step": 1})

    def half(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        modules.persist.write(path, half)
    assert modules.persist.load(path) == {"step": 1}
    order = []
    monkeypatch.setattr(os, "fsync", lambda _: order.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda *_: order.append("replace"))
    modules.persist.save(path, {"step": 2})
    assert order == ["fsync", "replace", "fsync"] and modules.persist.load(path) == {"step": 1}


def test_the_log_keeps_what_the_checkpoint_knows_of(modules, tmp_path):
    known = "step,loss,error\n2,0.5,1.0\n4,0.4,2.0\n"
    (tmp_path / "log.csv").write_text(known + "6,0.3,3.0\n8,0.2")
    with modules.persist.Log(tmp_path, 4, modules.persist.mark_of(known.encode()), tensorboard=False) as log:
        log.add(6, 0.25, 1.5)
    text = (tmp_path / "log.csv").read_text()
    assert text == "step,loss,error\n2,0.5,1.0\n4,0.4,2.0\n6,0.25,1.5\n"
    assert log.mark == modules.persist.mark_of(text.encode())


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_rank_ends_the_others_with_an_error(tmp_path, sent):
    """Killed, its connection breaks; stopped, it is silent until --timeout."""
    words = [EXAMPLES / "train.py", *MAML, "--steps", 10**9, "--out", tmp_path, "--timeout", 5]
    with ranks(2, *words, PYTHONPATH=str(ROOT)) as (first, second):
        wait_for(lambda: (tmp_path / "checkpoint.pt").exists() or first.poll() is not None)
        second.send_signal(sent)
        _, errors = first.communicate(timeout=60)
        assert first.returncode not in (0, None), errors
        assert "Error" in errors.splitlines()[-1] or "Error" in errors, errors
        if sent == signal.SIGSTOP:
            assert "timed out" in errors.lower() or "timeout" in errors.lower(), errors


@pytest.mark.gate
def test_torchrun_restarts_a_crashed_training_from_its_checkpoint(train, tmp_path):
    undisturbed, crashed = tmp_path / "undisturbed", tmp_path / "crashed"
    common = [*LEO, "--steps", "8", "--timeout", "30"]
    with ranks(2, EXAMPLES / "train.py", *common, "--out", undisturbed, PYTHONPATH=str(ROOT)) as started:
        for process in started:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    torchrun = "torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1 --monitor-interval 0.1"
    script = ROOT / "tools/harness/crashing_train.py"
    finished = subprocess.run(
        [sys.executable, "-m", *torchrun.split(), script, *common, "--resume", "--out", crashed],
        env=WITH_TOOLS | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "exitcode: -9" in finished.stderr, finished.stderr  # it did crash
    check_equal(undisturbed, crashed)
    noise = state(crashed)["noise"]
    assert len(noise) == 2 and not same(noise[0], noise[1])

    train(*LEO, "--out", crashed, "--resume", "--steps", 10)  # on one rank
    assert state(crashed)["step"] == 10 and state(crashed)["sampler"]["next"] == 40


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)

"""--resume from whatever a disk, a crash or a hand left: one line, exit code 2, the file named, and nothing written over."""

import errno
import io
import os
import pickle
import resource
import shutil
import subprocess
import sys

import pytest
import torch

from harness.rank_processes import ranks
from harness.trainings import EXAMPLES, MAML, modules_fixture, train_fixture, trained_fixture  # noqa: F401

pytestmark = pytest.mark.cpu


@pytest.fixture
def out(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "out")


@pytest.fixture
def refusal(modules, monkeypatch, capsys):
    """What `train.py --resume` says of a folder, in the one line that it prints."""

    def run(folder, *more):
        words = ["train.py", *MAML, "--out", str(folder), "--steps", "6", "--resume", *map(str, more)]
        monkeypatch.setattr(sys, "argv", words)
        before = contents(folder)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            sys.modules["common"].run(modules.train.options(), modules.train.main)
        printed = capsys.readouterr()
        assert exited.value.code == 2 and printed.out == ""
        assert len(printed.err.splitlines()) == 1 and len(printed.err) < 1000, printed.err
        assert contents(folder) == before
        return printed.err

    return run


def contents(folder):
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


class Evil:
    def __reduce__(self):
        return os.system, ("touch made",)


def flipped(data):
    """torch.load alone takes it."""
    found = torch.load(io.BytesIO(data), weights_only=True)
    place = data.find(found.get("learner", found)["model.0.weight"].numpy().tobytes()) + 5
    return data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :]


BYTES = {
    "empty": lambda data: b"",
    "text": lambda data: b"not a checkpoint",
    "half": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[:-30],
    "zeros": lambda data: bytes(len(data)),
    "an empty zip": lambda data: b"PK\5\6" + bytes(18),
    "a pickle": lambda data: pickle.dumps({"step": 1}),
    "a program": lambda data: pickle.dumps(Evil()),
    "one bit of a weight": flipped,
}


@pytest.mark.parametrize("damage", BYTES)
def test_a_damaged_file_is_named(modules, refusal, out, damage):
    for name in ("checkpoint.pt", "best.pt"):
        path = out / name
        sound = path.read_bytes()
        path.write_bytes(BYTES[damage](sound))
        with pytest.raises(ValueError) as raised:
            modules.persist.load(path)
        assert str(raised.value) == f"{path} must be a file saved by these programs, got a damaged or another one"
        if damage == "one bit of a weight":
            assert str(raised.value) in refusal(out)
        path.write_bytes(sound)
    assert not os.path.exists("made")


def test_the_checkpoint_of_another_training_is_named(modules, refusal, out):
    assert f"got leo for {out / 'checkpoint.pt'}" in refusal(out, "--learner", "leo", "--data", "glyphs")
    shutil.copy(out / "best.pt", out / "checkpoint.pt")
    assert f"{out / 'checkpoint.pt'} must hold a training with 'settings', got none" in refusal(out)


def test_the_best_learner_is_looked_at_before_the_training_goes_on(modules, refusal, out):
    path, found = out / "best.pt", torch.load(out / "best.pt")
    modules.persist.save(path, found | {"model.0.weight": torch.zeros(2)})
    assert (
        f"{path} must hold learner.model.0.weight, a tensor [40, 1] of torch.float32, got a tensor [2] of"
        in refusal(out)
    )
    path.unlink()
    assert str(path) in refusal(out)


LOGS = {
    "empty": lambda text: b"",
    "no header": lambda text: text[len("step,loss,error\n") :],
    "the header only": lambda text: b"step,loss,error\n",
    "without its last line": lambda text: text[: text.rindex(b"\n", 0, -1) + 1],
    "half a line": lambda text: text[:-4],
    "a line twice": lambda text: text[:-4].replace(b"\n2,", b"\n2,1.0,1.0\n2,"),
    "another digit": lambda text: text.replace(b".", b"0", 1),
    "no text": lambda text: b"\xff\xfe\0" + text[3:],
    "zeros": lambda text: bytes(len(text)),
    "Windows' lines": lambda text: text.replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("damage", LOGS)
def test_a_damaged_log_is_named(refusal, out, damage):
    path = out / "log.csv"
    path.write_bytes(LOGS[damage](path.read_bytes()))
    assert f"{path} must begin with the " in refusal(out)


def test_a_log_goes_on_where_later_lines_are_damaged_and_begins_where_it_was_deleted(train, out):
    path = out / "log.csv"
    kept = path.read_text()
    path.write_bytes(kept.encode() + b"\xff\0,6\n\n6,")
    train(*MAML, "--out", out, "--steps", 6, "--resume")
    assert path.read_text().startswith(kept) and len(path.read_text().splitlines()) == 4
    path.unlink()
    train(*MAML, "--out", out, "--steps", 8, "--resume")
    assert [line.split(",")[0] for line in path.read_text().splitlines()] == ["step", "8"]


@pytest.mark.parametrize("name", ["checkpoint.pt", "best.pt", "log.csv"])
def test_a_folder_in_a_files_place_is_named(refusal, out, name):
    (out / name).unlink()
    (out / name).mkdir()
    assert str(out / name) in refusal(out)


@pytest.mark.parametrize("call", ["write", "flush", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(modules, refusal, trained, out, monkeypatch, call):
    """Also where the training itself comes upon it: one line that names the file."""
    full = OSError(errno.ENOSPC, "No space left on device")
    old = contents(out)
    path = out / "checkpoint.pt"

    def fail(*_):
        raise full

    with monkeypatch.context() as patch:
        if call in ("fsync", "replace"):
            patch.setattr(os, call, fail)
            with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
                modules.persist.save(path, {"step": 5})
            assert "No space left on device" in refusal(out)
        else:
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100 if call == "write" else 1000, hard))
                with pytest.raises(OSError, match=f"File too large: '{path}'"):
                    modules.persist.save(path, {"step": torch.zeros(10**5) if call == "write" else 5})
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(out) == old


def test_the_log_names_itself_where_the_disk_is_full(modules, tmp_path, monkeypatch):
    with modules.persist.Log(tmp_path, 0, None, tensorboard=False) as log:
        monkeypatch.setattr(
            os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
        )
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'log.csv'}'"):
            log.add(1, 0.5, 0.5)


KILLED = """
import os, pathlib, random, signal, sys, time
import persist, torch
path = pathlib.Path(sys.argv[1])
persist.save(path, {"step": 0, "weights": torch.zeros(10_000)})
for attempt in range(6):
    child = os.fork()
    if not child:
        for step in range(10**6):
            persist.save(path, {"step": step, "weights": torch.full((10_000,), float(step))})
    time.sleep(random.Random(attempt).random() / 20)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = persist.load(path)
    assert (found["weights"] == found["step"]).all()
persist.save(path, found)
assert [other.name for other in path.parent.iterdir()] == [path.name]
"""


def test_a_kill_at_any_moment_leaves_a_checkpoint_that_loads(tmp_path):
    words = [sys.executable, "-c", KILLED, str(tmp_path / "checkpoint.pt")]
    subprocess.run(
        words, check=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES)}
    )


def test_every_rank_says_it(out):
    path = out / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-30])
    words = [EXAMPLES / "train.py", *MAML, "--out", out, "--resume", "--timeout", 30]
    with ranks(2, *words, PYTHONPATH=str(EXAMPLES.parent)) as started:
        for process in started:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 2, errors
            assert f"error: {path} must be a file saved by these programs" in errors.splitlines()[-1]

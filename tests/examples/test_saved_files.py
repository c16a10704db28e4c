"""Files that the examples read beside checkpoints: saved learners, files of results, Lake's runs; each fault names the file."""

import importlib
import io
import json
import sys
import types
import zipfile

import pytest
import torch

from harness.archives import drawing, write
from harness.places import ROOT

pytestmark = pytest.mark.cpu

MODULES = ("checkpoint", "common", "few_shot", "lake", "learners", "omniglot", "persist", "records", "sinusoid")


@pytest.fixture(scope="module")
def examples():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)  # another folder's
        yield types.SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})


def refusal(read, path):
    """What `read` says of the file, in one line."""
    with pytest.raises(ValueError) as raised:
        read(path)
    said = str(raised.value)
    assert str(path) in said and " must " in said and ", got " in said and "\n" not in said, said
    return said


SETTINGS = {"learner": "maml", "ways": 5, "hidden": 4, "inner_lr": 0.4, "inner_steps": 1}
WRONG_SETTINGS = [
    None, [], {}, SETTINGS | {"learner": "mamal"}, SETTINGS | {"ways": None}, SETTINGS | {"ways": -5}, SETTINGS | {"hidden": "4"},
    SETTINGS | {"depth": 3}, SETTINGS | {"embedding": SETTINGS}, SETTINGS | {"embedding": {"learner": "other"}},
    {"learner": "maml"}, SETTINGS | {"learner": ["maml"]},
]  # fmt: skip


def test_a_saved_learner_is_looked_at(examples, tmp_path):
    path = tmp_path / "learner.pt"
    weights = examples.omniglot.build(SETTINGS).state_dict()
    sound = {"settings": SETTINGS, "state": weights}
    examples.persist.save(path, sound)
    learner, settings = examples.omniglot.load(path)
    assert settings == SETTINGS
    assert all(torch.equal(value, weights[name]) for name, value in learner.state_dict().items())
    name = next(iter(weights))
    for wrong, said in [
        *(
            (sound | {"settings": settings}, "the settings of a learner that --save wrote")
            for settings in WRONG_SETTINGS
        ),
        ({"settings": SETTINGS}, "'state', got none"),
        (sound | {"more": 3}, "without 'more', got it"),
        ([1, 2], "a learner with names, got a list of 2"),
        (sound | {"settings": SETTINGS | {"hidden": 5}}, f"state.{name}, a tensor"),
        (sound | {"state": weights | {name: weights[name] * torch.nan}}, f"state.{name} of finite numbers"),
    ]:
        examples.persist.save(path, wrong)
        assert said in refusal(examples.omniglot.load, path)
    path.write_bytes(b"not a learner")
    refusal(examples.omniglot.load, path)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[1]", b"{}", b"3", b"\xff\xfe", b"[" * 100_000, b'[{"learner": "maml"},']
)
def test_a_file_of_results_is_looked_at_before_the_training(examples, tmp_path, text):
    path = tmp_path / "results.json"
    path.write_bytes(text)
    assert "must be a JSON list of rows, got another file" in refusal(examples.records.load, path)
    for module, words in (
        (examples.omniglot, []),
        (examples.lake, ["--runs", str(tmp_path / "runs.zip")]),
        (examples.sinusoid, ["--steps", "1"]),
    ):
        refusal(lambda path: module.main(module.options().parse_args([*words, "--results", str(path)])), path)  # noqa: B023
    assert path.read_bytes() == text


def test_rows_are_kept(examples, tmp_path):
    path = tmp_path / "new" / "results.json"
    rows = [{"learner": "maml", "seed": seed} for seed in (0, 1)]
    for row in rows:
        examples.records.add(path, row)
    assert examples.records.load(path) == rows == json.loads(path.read_text())
    assert [other.name for other in path.parent.iterdir()] == ["results.json"]


def run_of_lake(labels=None):
    drawn = [drawing(way // 7, way % 7) for way in range(20)]
    members = {
        f"run01/{kind}{number + 1:02}.png": drawn[number]
        for kind in ("training/class", "test/item")
        for number in range(20)
    }
    lines = [f"run01/test/item{number + 1:02}.png run01/training/class{number + 1:02}.png" for number in range(20)]
    return members | {"run01/class_labels.txt": "\n".join(lines).encode() if labels is None else labels(lines)}


def test_lakes_runs_are_looked_at(examples, tmp_path):
    sound = run_of_lake()
    path = write(tmp_path, "runs", sound)
    assert examples.lake.load(path)["run01"].query_y.tolist() == [list(range(20))]
    labels = sound["run01/class_labels.txt"]
    for members, more, said in [
        (run_of_lake(lambda lines: b"\xff\xfe" * 40), (), "must pair 20 drawings with 20 classes"),
        (run_of_lake(lambda lines: "\n".join([*lines[:19], lines[0].split()[0] + " " + lines[19].split()[1]]).encode()), (),
         "must pair 20 drawings with 20 classes"),  # one drawing twice
        (run_of_lake(lambda lines: b" " * 2**19), (), "it must have at most 262144 bytes, got 524288"),
        (sound, [("run01/class_labels.txt", labels)], "must hold every file once, got run01/class_labels.txt twice"),
        (sound, [("run01/test/./item05.png", drawing(0, 0))], "must hold every file once, got run01/test/item05.png twice"),
        (sound | {f"b/{name}": data for name, data in sound.items()}, (), "must hold every run once, got 2 of 1 names"),
        (sound | {"run01/test/item05.png": drawing(0, 0)[:-20]}, (), "--runs: a drawing must be a sound PNG, got run01/test/item05.png"),
    ]:  # fmt: skip
        found = refusal(examples.lake.load, write(tmp_path, "runs", members, *more))
        assert found.startswith("--runs") and said in found, found
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w"):
        pass
    path.write_bytes(stream.getvalue())
    assert "--runs must hold runNN/class_labels.txt, got none" in refusal(examples.lake.load, path)
    refusal(examples.lake.load, tmp_path / "missing.zip")


def test_a_seed_that_torch_cannot_take_is_an_argument_error(examples, capsys):
    for text in ("9" * 30, "-" + "9" * 30, "0.5", "x"):
        with pytest.raises(SystemExit) as exited:
            examples.sinusoid.options().parse_args([f"--seed={text}"])
        assert exited.value.code == 2 and "argument --seed" in capsys.readouterr().err
    assert examples.sinusoid.options().parse_args(["--seed=-3"]).seed == -3

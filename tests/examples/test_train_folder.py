"""examples/train.py --data folder: own images, of classes with different numbers of them, by every learner, split and resumed."""

import importlib
import re

import pytest
import torch

from harness.image_folders import noise, put  # first, as it skips without Pillow

# isort: split
from harness.damage import same
from harness.trainings import modules_fixture, state, steps_of, train_fixture  # noqa: F401

pytestmark = pytest.mark.cpu
SMALL = (
    "--data folder --size 16 --hidden 4 --ways 2 --tasks 4 --queries 2 --validation-tasks 8 --eval-tasks 8 --every 2"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Ten classes of 3 to 7 images."""
    folder = tmp_path_factory.mktemp("own")
    for number in range(10):
        for image in range(3 + number % 5):
            put(folder / f"class{number}" / f"{image}.png", noise(10 * number + image, 20, 18))
    return folder


def test_every_learner_trains(train, root, tmp_path, capsys):
    for learner in importlib.import_module("learners").OF_IMAGES:
        out = tmp_path / learner
        train("--learner", learner, "--root", root, "--out", out, "--steps", 3, *SMALL.split())
        assert re.search(r"8 unseen tasks: [\d.]+ ± [\d.]+ % wrong \(95 % CI\)", capsys.readouterr().out)
        assert steps_of(out) == [2, 3]


@pytest.mark.parametrize("options", ["--learner protonet", "--learner maml --model mlp --channels 1", "--learner leo"])
def test_a_resumed_training_is_the_undisturbed_one(train, root, tmp_path, options):
    words = [*options.split(), "--root", root, *SMALL.split()]
    train(*words, "--out", tmp_path / "whole", "--steps", 8)
    train(*words, "--out", tmp_path / "parts", "--steps", 4)
    train(*words, "--out", tmp_path / "parts", "--steps", 8, "--resume")
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))
    assert (tmp_path / "whole" / "log.csv").read_text() == (tmp_path / "parts" / "log.csv").read_text()
    with pytest.raises(ValueError, match="--resume: --size must be the checkpoint's 16, got 17"):
        train(*words, "--out", tmp_path / "parts", "--steps", 9, "--resume", "--size", 17)


def parts(modules, root, *more):
    args = modules.train.options().parse_args([*SMALL.split(), "--root", str(root), "--out", "x", *map(str, more)])
    modules.train.problem.settle(args)
    return modules.train.problem.own_images(args)


def test_no_class_is_in_two_parts(modules, root, tmp_path):
    training, validation, test = parts(modules, root)
    assert [part.classes for part in (training, validation, test)] == [
        [f"class{n}" for n in numbers] for numbers in (range(6), (6, 7), (8, 9))
    ]
    assert training.counts == [3, 4, 5, 6, 7, 3] and test.images.shape == (13, 3, 16, 16)
    files = tmp_path / "train.txt", tmp_path / "test.txt"
    files[0].write_text("class9\nclass1\nclass4\nclass5\n")
    files[1].write_text("class0\nclass2\n")
    training, validation, test = parts(modules, root, "--train-classes", files[0], "--test-classes", files[1])
    assert [part.classes for part in (training, validation, test)] == [
        ["class9", "class1"], ["class4", "class5"], ["class0", "class2"],
    ]  # fmt: skip


def test_a_mini_imagenet_keeps_the_last_fifth(modules, tmp_path):
    for number in range(100):
        for image in range(3):
            put(tmp_path / f"{number:02}" / f"{image}.png", noise(image))
    assert [len(part.classes) for part in parts(modules, tmp_path, "--ways", 5)] == [72, 8, 20]


def test_what_the_user_got_wrong_is_said(train, modules, root, tmp_path):
    classes = tmp_path / "classes.txt"
    classes.write_text("class0\nclass1\nclass2\nclass3\n")
    for words, said in (
        (f"--root {root} --ways 4", "--root must hold at least --ways 4 classes for each of 3 parts, got 10"),
        (f"--root {root} --queries 3", r"--shots \+ --queries must be at most the 3 images of class0, got 4"),
        (f"--root {root} --train-classes {classes}", "--train-classes and --test-classes must come together, got one"),
        (
            f"--root {root} --train-classes {classes} --test-classes {classes}",
            "the test's classes must be new, got class0 in",
        ),
        (f"--root {root} --size 15", "--size must be at least 16 for --model conv4, got 15"),
        ("", "--data folder needs --root DIR, the folder of the class folders"),
        (f"--root {root} --data glyphs --channels 3", "--channels 3 must come with --data folder, got glyphs"),
    ):
        with pytest.raises(ValueError, match=said):
            train(*SMALL.split(), *words.split(), "--out", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="image_folder: root must be a folder of class folders"):
        train(*SMALL.split(), "--root", root / "none", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_glyphs_may_have_another_size(train, tmp_path):
    options = "--learner protonet --data glyphs --size 16 --hidden 4 --tasks 4 --validation-tasks 8 --eval-tasks 8"
    train(*options.split(), "--out", tmp_path, "--steps", 1)
    assert state(tmp_path)["settings"]["size"] == 16
    assert all(torch.isfinite(value).all() for value in state(tmp_path)["learner"].values())

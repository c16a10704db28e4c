"""The examples run, print what they promise, repeat themselves with a seed, and refuse wrong options in one line."""

import importlib
import itertools
import os
import re
import subprocess
import sys

import in_jax
import pytest
import torch

from harness import forks
from harness.places import EXAMPLES, OMNIGLOT

pytestmark = pytest.mark.cpu
SINUSOID = "sinusoid.py --steps 5 --tasks 4 --eval-tasks 50"
IMAML = "imaml.py --steps 5 --tasks 4 --eval-tasks 50"
FEW_SHOT = "few_shot.py --steps 2 --hidden 4 --tasks 2 --eval-tasks 20"
TIMES = r"[\d.]+ ms +[\d.]+ ms +[\d.]+x$"


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Runs command lines of the examples; what came of every one, in order. One that stood before runs in a process of its own."""
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "OMP_NUM_THREADS": "1"}

    def alone(*words, env):
        return subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=300)

    def run_all(*commands):
        found = []
        for i, command in enumerate(commands):
            name, *options = command.split()
            run = alone if command in commands[:i] else forks.run
            found.append(run(str(EXAMPLES / name), *options, env=env))
        return found

    return run_all


@pytest.fixture
def imaml(monkeypatch):
    """examples/imaml.py as a module."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "common", raising=False)  # another folder's
    return importlib.import_module("imaml")


def printed(process):
    assert process.returncode == 0, process.stderr
    return process.stdout


def refusal(process):
    """The one line on stderr of a run that the user has to put right."""
    assert process.returncode == 2 and process.stdout == ""
    assert len(process.stderr.splitlines()) == 1, process.stderr
    return process.stderr


def numbers(text):
    """Every mean and the half width of its interval."""
    return re.findall(r"([\d.]+) ± ([\d.]+)", text)


def test_help(examples):
    for process in examples("demo.py --help", "sinusoid.py --help", "few_shot.py --help", "imaml.py --help"):
        text = printed(process)
        for option in ("--steps", "--seed", "--device", "--backend"):
            assert option in text


def test_sinusoid(examples):
    commands = [f"{SINUSOID} --learner maml --seed {seed}" for seed in (3, 3, 4)]
    texts = [printed(process) for process in examples(*commands, f"{SINUSOID} --learner meta-sgd")]
    for text in texts:
        assert "MSE on 50 unseen tasks (95 % CI)" in text
        assert re.findall(r"^(\d+) +(?:[\d.]+ ± [\d.]+|diverges)$", text, re.M) == ["0", "1", "5", "10"]
        assert re.search(f"^{TIMES}", text, re.M)
    same_seed, other_seed = texts[:2], texts[2]
    assert numbers(same_seed[0]) == numbers(same_seed[1]) != numbers(other_seed)


def test_imaml(examples):
    commands = f"{IMAML} --seed 3", f"{IMAML} --seed 3", f"{IMAML} --curvature hessian"
    texts = [printed(process) for process in examples(*commands)]
    for text, curvature in zip(texts, ("ggn", "ggn", "hessian"), strict=True):
        assert f"iMAML ({curvature}), 10 shots" in text
        assert re.findall(r"^(\w+) +[\d.]+ ± [\d.]+$", text, re.M) == ["no", "yes"]
        before, after = (float(mean) for mean, _ in numbers(text))
        assert after < before
        assert re.search(r"shrink the gradient to [\d.]+e-\d+ of its length", text)
    assert numbers(texts[0]) == numbers(texts[1])


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_imaml_on_linear_regression_equals_the_closed_form(imaml, curvature):
    """One layer of squared error: the optimum, the loss there and the meta-gradient by solving linear systems."""
    strength, width, outputs = 0.7, 4, 2
    layer = torch.nn.Linear(width, outputs).double()
    learner = imaml.IMAML(layer, strength=strength, inner_steps=40, cg_steps=12, curvature=curvature)
    xs, xq = (torch.randn(3, n, width, dtype=torch.float64) for n in (5, 6))
    ys, yq = (torch.randn(3, n, outputs, dtype=torch.float64) for n in (5, 6))

    def jacobian(x):
        """[T, n * outputs, P]: outputs in W, then in b."""
        each = torch.eye(outputs, dtype=x.dtype)
        return torch.stack([torch.cat([torch.cat([torch.kron(each, row), each], 1) for row in task]) for task in x])

    theta = learner.theta().requires_grad_()
    j, scale = jacobian(xs), 2 / ys[0].numel()
    regularised = scale * j.mT @ j + strength * torch.eye(theta.numel(), dtype=theta.dtype)
    targets = scale * (j.mT @ ys.flatten(1).unsqueeze(2)).squeeze(2) + strength * theta
    phi = torch.linalg.solve(regularised, targets)
    closed = ((jacobian(xq) @ phi.unsqueeze(2)).squeeze(2) - yq.flatten(1)).square().mean(1)
    (dtheta,) = torch.autograd.grad(closed.sum(), theta)

    dphi = torch.randn_like(phi)
    solved = strength * torch.linalg.solve(regularised, dphi)
    torch.testing.assert_close(learner.pull_back(dphi, phi.detach(), xs, ys), solved, rtol=0, atol=1e-12)

    near = {
        "rtol": 0,
        "atol": 1e-7,
    }  # the objective does not tell points apart that are closer than the root of a rounding
    torch.testing.assert_close(learner.adapt(xs, ys), phi.detach(), **near)
    ours = learner(xs, ys, xq, yq)
    torch.testing.assert_close(ours.detach(), closed.detach(), **near)
    grads = torch.autograd.grad(ours.sum(), list(layer.parameters()), retain_graph=True)
    torch.testing.assert_close(torch.cat([g.flatten() for g in grads]), dtheta, **near)
    with pytest.raises(RuntimeError, match="IMAML: the gradient must be of first order, got create_graph=True"):
        torch.autograd.grad(ours.sum(), list(layer.parameters()), create_graph=True)


def test_few_shot_on_glyphs(examples):
    protonet, maml = f"{FEW_SHOT} --seed 3", f"{FEW_SHOT} --learner maml --inner-steps 2"
    texts = [printed(process) for process in examples(protonet, protonet, maml)]
    for text, learner in zip(texts, ("protonet", "protonet", "maml"), strict=True):
        assert f"{learner} with conv4 on glyphs, 1-shot" in text
        assert re.search(r"^5 +[\d.]+ ± [\d.]+ %$", text, re.M)
        assert re.search(f"^{TIMES}", text, re.M)
    assert numbers(texts[0]) == numbers(texts[1])


@pytest.mark.skipif(not OMNIGLOT.is_dir(), reason="the Omniglot archives are not beside this checkout")
def test_few_shot_on_omniglot(examples):
    archives = "--train-archive images_background_small1 --test-archive images_background_small2"
    options = f"{FEW_SHOT} --data omniglot --root {OMNIGLOT} {archives} --test-alphabets"
    trained, overlapping = examples(
        f"{options} Sanskrit Tagalog --shots 5 --ways 3 4 --train-ways 6", f"{options} Greek"
    )
    assert "protonet with conv4 on omniglot, 5-shot" in printed(trained)
    assert re.findall(r"^(\d+) +[\d.]+ ± [\d.]+ %$", trained.stdout, re.M) == ["3", "4"]
    assert "got Greek in both" in refusal(overlapping)


@pytest.mark.skipif(not OMNIGLOT.is_dir(), reason="the Omniglot archives are not beside this checkout")
def test_heads_on_omniglot(examples):
    small = f"heads.py --root {OMNIGLOT} --steps 2 --hidden 4 --batch-ways 5 --eval-tasks 20 --ways 5 --shots 1 5"
    (done,) = examples(small)
    rows = re.findall(r"^(\S+) +5 +(\d) +[\d.]+ ± [\d.]+ % +(\d) steps in \d+ s$", printed(done), re.M)
    names = {"protonet": "2", "supcon": "2", "pixels": "0"}
    assert rows == [(name, shots, steps) for name, steps in names.items() for shots in "15"]


@pytest.mark.skipif(not OMNIGLOT.is_dir(), reason="the Omniglot archives are not beside this checkout")
def test_made_features_on_omniglot(examples, tmp_path):
    """Every cell has a number, and a seed that is in the file of results is not run again."""
    small = f"generative.py --root {OMNIGLOT} --steps 1 --hidden 4 --generator-steps 3 --made 2 --eval-tasks 5"
    first, second = examples(*(f"{small} --seeds {seeds} --results {tmp_path}/made.json" for seeds in ("1", "1 1")))
    rows = re.findall(r"^(\d) +(class mean|softmax) +(\w+) +[\d.]+ ± [\d.]+ %$", printed(first), re.M)
    assert rows == [*itertools.product("15", ("class mean", "softmax"), ("nothing", "gaussian", "vae", "gan"))]
    assert numbers(printed(second)) == [found for found in numbers(first.stdout) for _ in range(2)]
    assert "training" in first.stderr and "training" not in second.stderr


@pytest.mark.skipif(not OMNIGLOT.is_dir(), reason="the Omniglot archives are not beside this checkout")
def test_few_shot_on_a_split_of_classes(examples, tmp_path):
    archives = "--train-archive images_background_small1 --test-archive images_background_small2"
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text("".join(f"Korean/character0{i}/rot{90 * (i % 4):03}\n" for i in range(1, 7)))
    test.write_text("".join(f"Sanskrit/character0{i}/rot000\n" for i in range(1, 6)))
    options = f"{FEW_SHOT} --data omniglot --root {OMNIGLOT} {archives} --train-classes {train}"
    trained, same, alone = examples(f"{options} --test-classes {test}", f"{options} --test-classes {train}", options)
    assert re.findall(r"^(\d+) +[\d.]+ ± [\d.]+ %$", printed(trained), re.M) == ["5"]
    assert "got Korean/character01/rot090 in both files" in refusal(same)
    assert "--train-classes and --test-classes must come together, got one" in refusal(alone)


def test_the_demo_prints_a_table_and_draws(examples, tmp_path):
    out = tmp_path / "new" / "demo"
    times = TIMES.replace("$", r" +[\d.]+ ms +[\d.]+x$") if in_jax.installed() else TIMES
    text = printed(*examples(f"demo.py --steps 2 --out {out}"))
    rows = re.findall(rf"^(\w+) +(\S+) +(MSE|accuracy) [\d.]+ ± [\d.]+.* {times}", text, re.M)
    assert rows == [
        ("sinusoid", "MAML", "MSE"),
        ("sinusoid", "Meta-SGD", "MSE"),
        ("glyphs", "ProtoNet", "accuracy"),
        ("glyphs", "MAML", "accuracy"),
    ]
    sizes = {path.name: path.stat().st_size for path in out.iterdir()}
    assert set(sizes) == {"sinusoid.png", "episode.png", "learning.png", "speedup.png"}
    assert min(sizes.values()) > 5000


def test_what_the_user_got_wrong_is_one_line(examples, tmp_path):
    (tmp_path / "broken").mkdir()
    archive = tmp_path / "broken" / "images_background.zip"
    archive.write_bytes(b"no zip")
    said = {
        "demo.py --data omniglot": "--data omniglot needs --root",
        f"few_shot.py --data omniglot --root {tmp_path}": f"got no file {tmp_path}",
        f"few_shot.py --data omniglot --root {archive.parent}": f"got {archive}: ",
        "few_shot.py --learner maml --train-ways 6": "--train-ways 6",
        "sinusoid.py --device nowhere": "nowhere",
        "imaml.py --strength 0": "strength must be positive, got 0.0",
    }
    for process, words in zip(examples(*said), said.values(), strict=True):
        assert words in refusal(process)

"""The programs of fastmeta.unroll: its gradients are those of the plain loops of examples/plain.py, in float64, and all run."""

import re

import letters
import pytest
import reweight
import torch
from plain import WAYS

from harness import forks
from harness.places import ROOT
from harness.unrolled_programs import PROGRAMS


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("program", PROGRAMS)
def test_gradients(program):
    torch.manual_seed(0)
    problem = PROGRAMS[program](3, False)
    found = {way: problem.differentiated(way) for way in WAYS}
    assert all(part.any() and part.dtype == torch.float64 for part in found["unroll"])
    for way in WAYS:
        torch.testing.assert_close(found[way][0], found["autograd"][0], rtol=1e-12, atol=0)  # the loss
        torch.testing.assert_close(found[way][1:], found["autograd"][1:], rtol=1e-9, atol=1e-12)


def printed(program, way="unroll"):
    name, *options = program.split()
    process = forks.run(str(ROOT / "examples" / name), *options, "--way", way)
    assert process.returncode == 0, process.stderr
    assert f"by {way}" in process.stdout
    return process.stdout


def numbers(text, row):
    """Those of a row, without their intervals."""
    (line,) = (line.removeprefix(row) for line in text.splitlines() if line.startswith(f"{row}  "))
    return [float(number) for number in re.findall(r"[\d.e-]+", re.sub(r" ± \S+", "", line))]


@pytest.mark.parametrize("way", ["unroll", "autograd"])
@pytest.mark.parametrize(
    ("program", "rows"),
    [
        ("distill.py --steps 2 --classes 3 --epochs 3 --experts 1 --inner-steps 2 --eval-steps 2", 3),
        ("reweight.py --steps 5 --classes 3 --examples 20 --batch 10", 2),
    ],
)
def test_programs(program, rows, way):
    assert len(re.findall(r"^\w+.* [\d.]+ %", printed(program, way), re.M)) >= rows


@pytest.mark.parametrize(
    ("program", "worse", "better"),  # a row and a column of it
    [
        (
            "truncated.py --steps 25 --classes 5 --inner-steps 20 --window 10 --rate 0.01 --lr 0.05 --eval-nets 2",
            ("real", -1), ("distilled", -1),
        ),
        (
            "hyperparameters.py --steps 25 --classes 3 --inner-steps 10 --rate 0.003 --lr 0.2 --eval-nets 3 --seed 1",
            ("as given", -1), ("learned", -1),
        ),
        (
            "maml_plus.py --steps 10 --inner-steps 2 --hidden 8 --eval-tasks 20 --lr 0.01",
            ("MAML++", 0), ("MAML++", 1),
        ),
        (
            "ttt.py --steps 12 --chunks 4 --length 32 --batch 4 --lr 0.01 --eval-texts 16",
            ("trained through the steps", -1), ("without steps", -1),
        ),
        ("modulate.py --steps 20 --size 28 --width 32 --batch 4 --eval-images 16", ("no", -1), ("yes", -1)),
    ],
)  # fmt: skip
def test_a_short_run_improves_what_it_should(program, worse, better):
    text = printed(program)
    low, high = (numbers(text, row)[column] for row, column in (worse, better))
    assert low < high


def test_reweight_in_one_op():
    """The weights' gradient, as by unroll."""
    net, weights = letters.network(3, 8), torch.zeros(10, requires_grad=True)
    batch, clean = (letters.Letters(torch.rand(n, 1, 28, 28), torch.arange(n) % 3) for n in (10, 6))
    slopes = []
    for way in ("native", "unroll"):
        loss = reweight.clean_loss(way, net, weights, batch, clean, 0.1, 3)
        slopes.append([loss, *torch.autograd.grad(loss, weights)])
    torch.testing.assert_close(*slopes)


def test_roc():
    """By hand: of four pairs three are in order; a tie counts a half; one of two is below all others."""
    noisy = torch.tensor([True, False, True, False])
    assert reweight.roc(torch.tensor([0.0, 1, 2, 3]), noisy) == (0.75, 0.5)
    assert reweight.roc(torch.tensor([1.0, 1, 0, 3]), noisy) == (0.875, 1.0)

"""The programs of fastmeta.unroll: its gradients are those of the plain loops of examples/plain.py, in float64, and all run."""

import re

import pytest
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
        torch.testing.assert_close(found[way], found["autograd"], rtol=1e-9, atol=1e-12)


def printed(program, way="unroll"):
    name, *options = program.split()
    process = forks.run(str(ROOT / "examples" / name), *options, "--way", way)
    assert process.returncode == 0, process.stderr
    assert f"by {way}" in process.stdout
    return process.stdout


def numbers(text, *rows):
    """The last number of each row, without its interval."""
    return [float(re.search(rf"^{row} .*?([\d.]+)(?: ± [\d.]+)?(?: %)?$", text, re.M)[1]) for row in rows]


@pytest.mark.parametrize("way", ["unroll", "autograd"])
@pytest.mark.parametrize(
    ("program", "rows"),
    [
        ("distill.py --steps 2 --classes 3 --epochs 3 --experts 1 --inner-steps 2 --eval-steps 2", 3),
        ("truncated.py --steps 2 --classes 3 --inner-steps 4 --window 2 --eval-nets 1", 3),
        ("reweight.py --steps 5 --classes 3 --examples 20 --batch 10", 2),
        ("hyperparameters.py --steps 2 --classes 3 --inner-steps 3 --eval-nets 1", 2),
        ("maml_plus.py --steps 2 --inner-steps 2 --hidden 4 --tasks 2 --eval-tasks 4", 2),
    ],
)
def test_programs(program, rows, way):
    assert len(re.findall(r"^\w+.* [\d.]+ %", printed(program, way), re.M)) >= rows


def test_reading_with_steps_tells_more():
    text = printed("test_time.py --steps 12 --chunks 4 --length 32 --batch 4 --lr 0.01 --eval-texts 16")
    plain, through = numbers(text, "without steps", "trained through the steps")
    assert through < plain


def test_trained_sines_fit_images_in_a_few_steps():
    text = printed("modulate.py --steps 20 --size 28 --width 32 --batch 4 --eval-images 16")
    before, after = numbers(text, "no", "yes")
    assert after > before + 1

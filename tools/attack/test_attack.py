"""A fixed slice of the attack holds; and the attack finds what is planted, and goes on after a crash."""

import os

import pytest
import torch

import fastmeta
from harness import forks
from harness.places import ROOT


def attack(*options):
    return forks.run("-m", "attack", "--processes", "1", *options, cwd=ROOT, seconds=500)


def test_a_fixed_slice_holds():
    ran = attack("--cases", "120", "--seed", "7")
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_public_name_is_attacked():
    from attack.cases import CASES

    parts = {
        "backend",
        "use_batch_statistics",
        "FullContext",
        "ConvBlock",
    }  # a setting, and what learners and nets are made of
    assert set(fastmeta.__all__) - parts <= set(CASES)


@pytest.fixture
def planted(monkeypatch):
    """Runs cases of one kind in place of all others, in processes of their own."""
    from attack import cases
    from attack.pool import Pool

    def run(case, count=3):
        monkeypatch.setattr(cases, "CASES", {"planted": (1, case)})
        pool = Pool(1)
        found = list(pool.run(map(str, range(count))))
        pool.close()
        return pool, found

    return run


def test_a_wrong_result_is_found_and_shrunk(planted):
    from attack.__main__ import shrunk
    from attack.cases import problem
    from attack.ops import OPS

    def wrong(draw):
        p = OPS["sgd_step"](draw)
        right = p.function
        p.function = lambda params, grads, lr: right(params, grads, lr if draw.odd("culprit", 0) else 0.0)
        problem(lambda _: p)(draw)

    pool, found = planted(wrong, 8)
    failed = [(history, outcome) for history, outcome in found if outcome["status"] == "finding"]
    assert failed
    token, outcome = shrunk(pool, *failed[0])
    assert "differs" in outcome["kind"] and "-" in token and not outcome["seen"][3:]


def test_a_crash_and_an_endless_case_are_findings(planted, monkeypatch):
    monkeypatch.setattr("attack.pool.LIMIT", 3)

    def case(draw):
        if draw.seed == 1:
            os.abort()
        while draw.seed == 2:
            pass

    _, found = planted(case, 4)
    assert [outcome["kind"] for _, outcome in found] == ["", "crash: SIGABRT", "no answer in 3 s", ""]


@pytest.mark.parametrize(
    ("got", "want", "holds"), [(1 + 1e-15, 1.0, True), (1 + 1e-12, 1.0, False), (1.0, float("nan"), False)]
)
def test_the_tolerance(got, want, holds):
    from attack.compare import compare
    from attack.problem import Finding

    want = torch.tensor([want, 0.5], dtype=torch.float64)
    got = torch.tensor([got, 0.5], dtype=torch.float64)
    if holds:
        compare("it", got, want, lambda: [want, want], [want], False)
    else:
        with pytest.raises(Finding):
            compare("it", got, want, lambda: [want, want], [want], False)

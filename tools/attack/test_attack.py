"""A fixed slice of the attack holds; and the attack finds what is planted, and goes on after a crash."""

import os

import pytest
import torch

import fastmeta
from attack import runner, tokens
from attack.faults import WRONG
from attack.op_problems import PROBLEMS
from attack.subject import Finding
from attack.tolerance import compare
from harness import forks
from harness.places import WITH_TOOLS


@pytest.mark.gate
def test_a_fixed_slice_holds():
    ran = forks.run("-m", "attack", "--processes", "1", "--cases", "120", "--seed", "7", env=WITH_TOOLS, seconds=500)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_public_name_is_attacked():
    """But settings, what learners and nets are made of, and what is made of these; LEO, unroll, heads, ragged, proto_loss_loo and
    symmetric_loss have formulas in their tests alone."""
    parts = {"backend", "use_batch_statistics", "FullContext", "ConvBlock", "LEO"}
    parts |= {"value_and_grad", "fit", "graphed", "evaluate", "Estimate", "optim"}
    parts |= {"unroll", "SGD", "Adam", "heads", "ragged", "proto_loss_loo", "symmetric_loss"}
    assert set(fastmeta.__all__) - parts <= set(tokens.CASES)


@pytest.fixture
def planted(monkeypatch):
    """Runs cases of one kind in place of all others, in processes of their own."""

    def run(case, count):
        monkeypatch.setattr(tokens, "CASES", {"planted": (1, case)})
        return list(runner.outcomes(map(str, range(count))))

    return run


def test_a_wrong_result_is_found_and_shrunk(planted):
    def wrong(draw):
        p = PROBLEMS["sgd_step"](draw)
        right = p.function
        p.function = lambda params, grads, lr: right(params, grads, lr if draw.odd("culprit", 0) else 0.0)
        tokens.problem(lambda _: p)(draw)

    failed = [found for found in planted(wrong, 8) if found[1]["status"] == "finding"]
    assert failed
    token, outcome = runner.shrunk(*failed[0])
    assert "differs" in outcome["kind"] and "-" in token and not outcome["seen"][3:]


def test_a_crash_and_an_endless_case_are_findings(planted, monkeypatch):
    monkeypatch.setattr(runner, "LIMIT", 3)

    def case(draw):
        if draw.seed == 1:
            os.abort()
        while draw.seed == 2:
            pass

    kinds = [outcome["kind"] for _, outcome in planted(case, 4)]
    assert kinds == ["", "crash: SIGABRT", "no answer in 3 s", ""]


def test_labels_and_arguments_that_are_taken_are_findings(planted):
    """By an op that looks at nothing."""

    def careless(draw):
        p = PROBLEMS["prototypes"](draw)
        p.function = lambda support, labels, num_classes: support
        return p

    for of, words in (("labels", "takes labels out of range"), ("wrong", "takes")):
        make = getattr(tokens.faults, of)
        found = planted(lambda draw, make=make: make(draw, {"prototypes": careless}, lambda draw, p: None), len(WRONG))
        assert any(words in outcome["kind"] for _, outcome in found), found


@pytest.mark.parametrize(
    ("got", "want", "holds"), [(1 + 1e-15, 1.0, True), (1 + 1e-12, 1.0, False), (1.0, float("nan"), False)]
)
def test_the_tolerance(got, want, holds):
    got, want = (torch.tensor([x, 0.5], dtype=torch.float64) for x in (got, want))
    try:
        compare("it", got, want, lambda: [want, want], [want], False)
    except Finding:
        assert not holds
    else:
        assert holds

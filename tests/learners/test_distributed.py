"""Learners in DistributedDataParallel and FSDP2 over gloo against one process with the whole meta-batch, in float64."""

from pathlib import Path

import pytest
import torch

from harness import distributed_worker
from harness.rank_processes import ranks

pytestmark = pytest.mark.cpu
with_two = pytest.mark.parametrize("found", [2], indirect=True)


@pytest.fixture(scope="module")
def found(request, tmp_path_factory):
    """What each case gave with 2 and with 3 processes."""
    out = tmp_path_factory.mktemp("found") / "found.pt"
    with ranks(request.param, Path(distributed_worker.__file__), out, apart=request.param == 2) as started:
        for process in started:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    return torch.load(out)


@pytest.mark.parametrize("case", distributed_worker.CASES)
@pytest.mark.parametrize("found", [2, 3], indirect=True)
def test_ddp_equals_one_process(found, case):
    check(found[case], distributed_worker.alone(case))


@pytest.mark.parametrize("case", distributed_worker.CASES)
@with_two
def test_fsdp_of_a_learner_equals_one_process(found, case):
    check(found[f"fsdp, {case}"], distributed_worker.alone(case))


@with_two
def test_fsdp_of_protonets_encoder_equals_one_process(found):
    check(found["fsdp, parts"], distributed_worker.alone("protonet"))


@with_two
def test_sharded_parameters_do_not_reach_a_kernel(found):
    message = "TypeError: MAML: params must be a tensor with memory of its own, got DTensor"
    assert found["fsdp, refused"] == message


def check(ours, alone):
    assert ours.keys() == alone.keys()
    for name, truth in alone.items():
        torch.testing.assert_close(ours[name], truth, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")

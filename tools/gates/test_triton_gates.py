"""The machine code of the Triton kernels, for GPUs that are not here: no local memory, loads of 16 bytes, tensor cores where
allowed, whole sectors. In the process in which the other tests interpret the same kernels."""

import importlib

import pytest
import torch

import fastmeta
from gates import triton_requests
from gates.memory_requests import wasteful
from gates.occupancy import blocks_per_multiprocessor
from gates.triton_gates import (
    SHAPES,
    TENSOR_CORES,
    Launch,
    accessed_by,
    by_products,
    compilations,
    compiler,
    judged_runs,
)

pytestmark = pytest.mark.gate
DISTANCE = ("proto_log_softmax", "proto_loss", "matching_log_probs")
STEPS = ("sgd_step", "momentum_step", "adam_step")
RUNS = (  # shape (see triton_gates.py), architectures, ops
    ("few", ("90", "gfx942"), ("prototypes", *DISTANCE, *STEPS)),
    ("few half", ("90",), ("proto_loss",)),
    ("few double", ("100",), ("proto_loss", *STEPS)),
    ("some", ("90", "gfx942"), DISTANCE),
    ("many double", ("90",), ("proto_loss",)),
    ("many", ("90", "120"), ("proto_loss",)),
    ("many tf32", ("100",), ("proto_loss",)),
    ("many half", ("80", "90", "100", "gfx942"), ("proto_loss",)),
    ("many half", ("90",), ("proto_log_softmax", "matching_log_probs")),
    ("few more", ("90", "gfx942"), ("proto_loss",)),
    ("some more", ("90",), ("proto_loss",)),
    ("many more", ("90",), ("proto_loss",)),
    ("few soft", ("90", "gfx942"), ("proto_loss",)),
    ("some soft", ("90",), ("proto_loss",)),
    ("many soft", ("90",), ("proto_loss",)),
    ("conv", ("90", "120"), ("task_conv2d",)),
    ("conv strided", ("90",), ("task_conv2d",)),
    ("conv tf32", ("80", "100"), ("task_conv2d",)),
    ("conv half", ("80", "90", "gfx942"), ("task_conv2d",)),
    ("conv double", ("90",), ("task_conv2d",)),
)
REQUESTS = {
    "few": ("prototypes", *DISTANCE, *STEPS),
    "few half": ("proto_loss",),
    "many": ("proto_loss",),
    "conv": ("task_conv2d",),
}
# Calls of other tasks, queries (images), columns (supports), as a last batch is; blocks have one shape for all of them.
CALLS = [{"T": T, "Q": Q, "N": N} for T, Q, N in ((4, 75, 5), (3, 33, 8), (16, 64, 6), (17, 300, 7))]
NARROW = "_reduce_kernel"  # 12 bytes a query, from where a task begins
PLANTED = {
    "spills": ((torch.zeros(1), torch.zeros(1)), {"num_warps": 2}),
    "strided_loop": ((torch.zeros(128, 16), torch.zeros(128), 16), {"num_warps": 4}),
    "whole_rows": ((torch.zeros(16, 128), torch.zeros(128), 16), {"num_warps": 4}),
}


def planted(name):
    args, options = PLANTED[name]
    module = importlib.import_module("gates.planted_triton")  # of the interpreter, or in `compiler` of the compiler
    return Launch(name, "planted", getattr(module, name), args, options | {"BLOCK": 128})


def few_distances():
    with fastmeta.backend("triton"):
        return fastmeta.proto_log_softmax(torch.ones(2, 3, 16), torch.ones(2, 4, 16))


@pytest.fixture(scope="module")
def compiled():
    """What was judged, and the compilations of calls of other sizes."""
    out, accessed = few_distances(), accessed_by(REQUESTS)
    for name in ("strided_loop", "whole_rows"):
        launch = planted(name)
        with triton_requests.addresses() as accessed[name, "planted"]:
            launch.kernel[1,](*launch.args, BLOCK=128)
    with compiler():
        judged = judged_runs(RUNS, accessed, [planted(name) for name in PLANTED])
        narrow = [{**sizes, "D": 15} for sizes in CALLS]
        counted = [compilations("few", REQUESTS["few"], calls) for calls in (CALLS, narrow)]
        counted.append(compilations("conv", ("task_conv2d",), CALLS))
    assert torch.equal(few_distances(), out)  # the interpreter is what it was
    return judged, counted


@pytest.fixture
def found(compiled):
    return compiled[0]


@pytest.fixture
def ours(found):
    return [x for x in found if x.shape != "planted"]


@pytest.fixture
def faulty(found):
    return {(x.op, x.code.arch): x for x in found if x.shape == "planted"}


def test_every_kernel_was_judged(ours):
    def launches(shape, op):
        """One each way; of a convolution's gradients two; by products 2 for operands, 2 for near pairs, 2 gradients, weights."""
        if not by_products(shape):
            return 3 if op == "task_conv2d" else 2
        return 8 + (op == "proto_loss") + 2 * (SHAPES[shape][1] == "cosine")

    assert len(ours) == sum(launches(shape, op) * len(arches) for shape, arches, ops in RUNS for op in ops)
    assert {x.code.arch for x in ours} == {"80", "90", "100", "120", "gfx942"}


def test_no_kernel_touches_local_memory(ours, faulty):
    assert [x.code for x in ours if x.code.local or x.code.local_accesses] == []
    for arch in ("90", "gfx942"):
        assert faulty["spills", arch].code.local > 0 and faulty["spills", arch].code.local_accesses > 0


def test_loads_are_wide(ours, faulty):
    assert [(x.op, x.shape, x.code) for x in ours if x.code.wide_loads == 0 and x.code.kernel != NARROW] == []
    assert faulty["strided_loop", "90"].code.wide_loads == 0


def test_tensor_cores_where_they_are_allowed(found):
    assert [(x.op, x.shape, x.code) for x in found if (x.code.tensor_core > 0) != (x.shape in TENSOR_CORES)] == []


def test_main_loops_waste_no_requests(ours):
    """Global memory in at most twice the sectors that would hold what a warp asks for."""
    assert {(x.op, x.shape) for x in ours if x.lines} == {(op, shape) for shape, ops in REQUESTS.items() for op in ops}
    assert [(x.op, x.shape, wasteful(x.lines)) for x in ours if wasteful(x.lines)] == []


def test_a_planted_uncoalesced_loop_is_found(faulty):
    """16 loads of 4 warps, each lane in a sector of its own; a store of 4 sectors each."""
    strided, whole = (faulty[name, "90"].lines for name in ("strided_loop", "whole_rows"))
    sums = [{x.direction: (x.requests, x.cost, x.least) for x in lines} for lines in (strided, whole)]
    assert sums[0] == {"load": (64, 64 * 32, 64 * 4), "store": (4, 16, 16)}
    assert sums[1] == {"load": (64, 64 * 4, 64 * 4), "store": (4, 16, 16)}
    assert [x.direction for x in wasteful(strided)] == ["load"] and wasteful(whole) == []


def test_calls_of_other_sizes_compile_nothing_anew(compiled):
    """But for features, channels and pixels: a kernel knows of multiples of 16, whether they are or, as 15 features, are not."""
    assert [len(launches) for launches in compiled[1]] == [14, 14, 3]
    assert [(kernel, len(keys)) for launches in compiled[1] for kernel, keys in launches if len(keys) > 1] == []


def test_occupancy_is_as_llvm_counts_it(ours):
    """Waves on each of 4 SIMDs, by registers alone; its scheduler may have settled for fewer in the steps with a state."""
    of_amd = [x for x in ours if x.waves]
    assert len(of_amd) > 5
    for x in of_amd:
        blocks = blocks_per_multiprocessor("gfx942", x.code.registers, 64, 0)
        assert blocks == 4 * x.waves or (x.op in STEPS[1:] and blocks > 4 * x.waves), x

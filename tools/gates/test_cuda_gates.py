"""The CUDA kernels for GPUs that are not here: their machine code touches no local memory, their warps waste no memory requests."""

import ctypes
import itertools
import re
from pathlib import Path

import pytest
import torch
from toolchain import ARCHITECTURES

from emulator import emulation, planted
from gates import cuda_gates
from gates.memory_requests import PROBLEMS, lines_of, of_all_ops, wasteful
from harness.places import ROOT

PRODUCTS = tuple(f"{name}_kernel<float" for name in ("product", "conv", "conv_weight"))
needs_nvcc = pytest.mark.skipif(
    cuda_gates.missing() is not None, reason=f"judging CUDA needs nvcc: {cuda_gates.missing()}"
)


def names():
    """Of the kernels, in the sources."""
    text = "".join(path.read_text() for path in (ROOT / "csrc").glob("*/cuda/*.cu*"))
    return set(re.findall(r"__global__[^;{]*?\b(\w+)\((?=[^)]*\)\s*\{)", text))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return cuda_gates.kernels(tmp_path_factory.mktemp("cubins"))


@pytest.mark.gate
@needs_nvcc
def test_no_kernel_touches_local_memory(kernels):
    """No spills, no stack, no arrays indexed at run time."""
    assert [(k.kernel, k.arch, k.local, k.local_accesses) for k in kernels if k.local or k.local_accesses] == []


@pytest.mark.gate
@needs_nvcc
def test_every_kernel_was_judged(kernels):
    assert {k.kernel.split("<")[0] for k in kernels} == names()
    assert {k.arch for k in kernels} == set(ARCHITECTURES)
    assert all(k.occupancy() > 0 for k in kernels), "not one block fits"


@pytest.mark.gate
@needs_nvcc
def test_only_products_in_tf32_take_tensor_cores(kernels):
    """Every product of float32 is there twice."""
    for arch in ARCHITECTURES:
        products = {k.kernel: k for k in kernels if k.arch == arch and k.kernel.startswith(PRODUCTS)}
        in_tf32 = {name for name in products if "TensorCores" in name}
        assert in_tf32 == {name.replace("OrdinaryUnits<float, ", "TensorCores<") for name in products}
        assert all(products[name].tf32 > 0 for name in in_tf32)
        assert {k.kernel for k in kernels if k.arch == arch and k.tensor_core} == in_tf32


@pytest.mark.gate
@needs_nvcc
def test_planted_code_is_seen():
    cubins = cuda_gates.compiled([Path(__file__).with_name("planted_code.cu")])
    found = {(k.kernel, k.arch): k for k in cuda_gates.judged(cubins)}
    for arch in ARCHITECTURES:
        spills, indexes, wide, narrow, multiplies = (
            found[name, arch] for name in ("spills", "indexes", "wide", "narrow", "multiplies")
        )
        assert spills.local >= 4 and spills.local_accesses >= 2 and spills.registers <= 64
        assert indexes.local == 64 and indexes.local_accesses >= 16
        assert (wide.loads, wide.wide_loads, wide.stores, wide.wide_stores) == (1, 1, 1, 1)
        assert (narrow.loads, narrow.wide_loads, narrow.stores, narrow.wide_stores) == (1, 0, 1, 0)
        assert (wide.shared, wide.threads, narrow.shared, narrow.threads) == (2048, 128, 0, 64)
        assert multiplies.tf32 == multiplies.tensor_core >= 1 and not (spills.tensor_core or wide.tensor_core)
        assert not any(k.local or k.local_accesses for k in (wide, narrow, multiplies))


@pytest.mark.gate
@pytest.mark.parametrize("problem", PROBLEMS)
def test_main_loops_waste_no_requests(problem):
    """Global memory in at most twice the sectors that would hold what a warp asks for, shared memory without conflicts of more
    than two; the exceptions are in memory_requests.py."""
    lines = of_all_ops(*problem)
    assert {line.kernel.split("<")[0] for line in lines} == names()
    assert {line.memory for line in lines} == {"global", "shared"}
    assert any("TensorCores" in line.kernel for line in lines) == (problem[-1] == torch.float32)
    tiles = {
        (line.kernel.split("<")[0], shape) for line in lines for shape in ("Low", "Square") if shape in line.kernel
    }
    assert tiles == {
        ("product_kernel", "Square"),
        *itertools.product(("conv_kernel", "conv_weight_kernel"), ("Low", "Square")),
    }
    assert wasteful(lines) == []


def of_planted(name):
    """Its lines by memory and direction."""
    library = planted.planted()
    library.requests.restype = ctypes.c_char_p
    library.count_requests(True)
    assert planted.run(name, "random", blocks=1) == ""
    lines = lines_of(str(emulation.compile_planted("checked")), library.requests().decode())
    library.count_requests(False)
    return lines, {(x.memory, x.direction): (x.requests, x.cost, x.least) for x in lines}


def test_requests_are_counted():
    """Two warps of 32 lanes; 4 bytes a lane are 4 sectors or 1 wavefront, 16 bytes for 16 lanes 8 sectors or 2 wavefronts."""
    lines, sums = of_planted("whole_rows")
    assert wasteful(lines) == []
    assert sums == {
        ("global", "load"): (2, 8, 8),
        ("shared", "store"): (2, 2, 2),
        ("shared", "load"): (2, 2, 2),
        ("global", "store"): (2, 8, 8),
    }
    _, sums = of_planted("four_at_a_time")
    assert sums["global", "load"] == (1, 8, 8) and sums["shared", "store"] == (1, 2, 2)


def test_a_planted_uncoalesced_loop_is_found():
    lines, sums = of_planted("uncoalesced_loop")
    assert sums["global", "load"] == (16, 128, 16)  # 8 iterations of 2 warps
    assert [(x.direction, x.line.split(":")[0]) for x in wasteful(lines)] == [("load", "planted.cu")]


def test_planted_bank_conflicts_are_found():
    lines, sums = of_planted("bank_conflicts")
    assert sums["shared", "load"] == (2, 64, 2) and sums["shared", "store"] == (64, 64, 64)
    assert [(x.memory, x.direction) for x in wasteful(lines)] == [("shared", "load")]

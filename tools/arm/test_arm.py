"""The driver, and with it every CPU kernel, on ARM under qemu; here first, so that a fault of the driver's is told from one of ARM's."""

import platform
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import toolchain

from arm import problems
from arm.loops import loops
from emulator.emulation import compiler, made
from harness.places import ROOT

CROSS = {"aarch64": ("aarch64-linux-gnu-g++",)}
RUNNER = {"aarch64": ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")}
HEADERS = sorted([*ROOT.glob("csrc/**/*.h"), *ROOT.glob("tools/arm/*.h")])
missing = [
    program[0]
    for program in (*CROSS.values(), *RUNNER.values(), ("aarch64-linux-gnu-objdump",))
    if not shutil.which(program[0])
]
pytestmark = [
    pytest.mark.gate,
    pytest.mark.skipif(
        bool(missing), reason=f"the kernels on ARM need {' and '.join(missing)} (make arm says where from)"
    ),
]


def command(machine: str) -> list[str]:
    """A compiler for it, and the flags of every file."""
    return [*CROSS.get(machine, compiler()), *shlex.split(toolchain.CXX_FLAGS), f"-I{ROOT}/csrc", f"-I{ROOT}/tools"]


def compiled(machine: str, source: str) -> Path:
    flags = shlex.split(toolchain.ISAS.get(machine, {"baseline": ""})["baseline"])
    path = ROOT / source
    return made([*command(machine), *flags, "-DFASTMETA_ISA=baseline", "-c", path], [path, *HEADERS], ".o")


def driver(machine: str) -> Path:
    """The program of the driver, the baseline's kernels and what these use, without Python."""
    paths = [*toolchain.sources("*/cpu/*.cpp"), "runtime/isa", "runtime/parallel", "runtime/arena"]
    sources = ["tools/arm/driver.cpp", *(f"csrc/{path}.cpp" for path in paths)]
    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(lambda source: compiled(machine, source), sources))
    return made([*command(machine), *objects, "-pthread", "-ldl"], (), ".out")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("arm") / "problems"
    return path, problems.save(path)


@pytest.mark.parametrize("machine", sorted({platform.machine(), "aarch64"}, reverse=True))
def test_every_kernel(saved, machine):
    path, count = saved
    run = RUNNER[machine] if machine != platform.machine() else ()
    process = subprocess.run([*run, driver(machine), path], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, ""), process.stdout
    assert process.stdout == f"{count} of {count} problems are right\n"


def test_what_is_wrong_is_found(saved, tmp_path):
    """With no error allowed in the last result, the last number of the file."""
    path, count = saved
    (tmp_path / "wrong").write_bytes(path.read_bytes()[:-8] + bytes(8))
    process = subprocess.run([driver(platform.machine()), tmp_path / "wrong"], capture_output=True, text=True)
    assert process.returncode == 1 and "mlp of float64" in process.stdout
    assert process.stdout.endswith(f"{count - 1} of {count} problems are right\n")


@pytest.mark.parametrize(
    ("source", "function", "sums"),
    [
        ("inner/cpu/matmul", "product_panel<float, 3>", 24), ("inner/cpu/matmul", "dot_block<float>", 20),
        ("inner/cpu/convolve", "convolve<float>", 28), ("inner/cpu/convolve", "correlate<float>", 28),
        ("distance/cpu/distance", "block_squares<float>", 20), ("distance/cpu/distance", "few_squares<float>", 20),
        ("distance/cpu/distance", "block_dquery<float>", 40),
    ],
)  # fmt: skip
def test_a_tile_stays_in_registers(source, function, sums):
    """A step of the largest tile, or two, has as many multiply-adds as the tile has sums, and none of its loops goes to memory for one."""
    found = [loop for loop in loops(compiled("aarch64", f"csrc/{source}.cpp")) if f"::{function}(" in loop.function]
    steps = [loop for loop in found if loop.multiply_adds > 0.3 * loop.instructions]
    assert max(loop.multiply_adds for loop in steps) == sums
    assert not [loop for loop in steps if loop.on_stack]

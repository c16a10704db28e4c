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
from emulator.emulation import compiler, made
from harness.places import ROOT

CROSS = {"aarch64": ("aarch64-linux-gnu-g++",)}
RUNNER = {"aarch64": ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")}
HEADERS = sorted([*ROOT.glob("csrc/**/*.h"), *ROOT.glob("tools/arm/*.h")])
missing = [program[0] for program in (*CROSS.values(), *RUNNER.values()) if not shutil.which(program[0])]
pytestmark = pytest.mark.skipif(
    bool(missing), reason=f"the kernels on ARM need {' and '.join(missing)} (make arm says where from)"
)


def driver(machine: str) -> Path:
    """The program of the driver, the baseline's kernels and what these use, without Python."""
    command = [*CROSS.get(machine, compiler()), *shlex.split(toolchain.CXX_FLAGS), f"-I{ROOT}/csrc", f"-I{ROOT}/tools"]
    flags = shlex.split(toolchain.ISAS.get(machine, {"baseline": ""})["baseline"])
    paths = [*toolchain.sources("*/cpu/*.cpp"), *(Path("runtime", name) for name in ("isa", "parallel", "arena"))]
    sources = [ROOT / "tools/arm/driver.cpp", *(ROOT / f"csrc/{path}.cpp" for path in paths)]

    def compile_object(source: Path) -> Path:
        return made([*command, *flags, "-DFASTMETA_ISA=baseline", "-c", source], [source, *HEADERS], ".o")

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compile_object, sources))
    return made([*command, *objects, "-pthread", "-ldl"], (), ".out")


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
    assert process.returncode == 1 and "conv_features of float64" in process.stdout
    assert process.stdout.endswith(f"{count - 1} of {count} problems are right\n")

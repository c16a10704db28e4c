"""Reads the machine code of every CUDA kernel, for GPUs that are not here: in the extension, or compiled with its flags."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import toolchain

from emulator import emulation
from fastmeta import _C
from gates import machine_code
from gates.machine_code import Code
from harness.places import ROOT


def missing() -> str | None:
    """Why nothing can be compiled; None where it can."""
    nvcc = toolchain.find_nvcc()
    if nvcc is None:
        return "no nvcc (NVCC, CUDA_HOME, /usr/local/cuda)"
    left = set(toolchain.ARCHITECTURES) - set(toolchain.architectures(nvcc))
    if left:
        return f"nvcc does not know sm_{', sm_'.join(sorted(left))}"
    return None if shutil.which("c++filt") else "no c++filt"


def compiled(sources: Iterable[Path], architectures: Iterable[str] = toolchain.ARCHITECTURES) -> list[tuple[Path, str]]:
    """The cubins of these sources for each architecture, kept in build/emulation."""
    headers = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cuh"))

    def compile_one(pair):
        source, arch = pair
        strict = "-Werror", "all-warnings"  # such as a host function that the device calls
        flags = *toolchain.NVCC_FLAGS.split(), f"-I{ROOT / 'csrc'}", f"-arch=sm_{arch}", "-cubin", *strict
        command = [toolchain.find_nvcc(), *flags, source]
        return emulation.made(command, [source, *headers], f".{arch}.cubin"), arch

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, [(source, arch) for source in sources for arch in architectures]))


def short_name(demangled: str) -> str:
    """forward_kernel<float>, of fastmeta::cuda::(anonymous namespace)::forward_kernel<float>(...)."""
    text, depth = demangled.replace("(anonymous namespace)::", ""), 0
    for end, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            text = text[:end]
            break
    return re.sub(r"\b[a-z]\w*::", "", text).removeprefix("void ")


def extracted(extension: Path, folder: Path) -> list[tuple[Path, str]]:
    """The cubins of an extension and their architectures."""
    command = [machine_code.CUOBJDUMP, "-xelf", "all", extension]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return [(path, path.stem.split(".sm_")[1]) for path in sorted(folder.glob("*.cubin"))]


def judged(cubins: list[tuple[Path, str]]) -> list[Code]:
    """Every kernel in them."""

    def read(cubin):
        path, arch = cubin
        return machine_code.of_cubin(path.read_bytes(), arch)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [code for codes in pool.map(read, cubins) for code in codes]
    names = subprocess.check_output(["c++filt"], input="\n".join(code.kernel for code in found), text=True)
    for code, name in zip(found, names.splitlines(), strict=True):
        code.kernel = short_name(name)
    return found


def extension() -> Path | None:
    """fastmeta._C where it has all architectures and is newer than all of its sources."""
    path = Path(_C.__file__)
    kernels = [p for p in (ROOT / "csrc").rglob("*.*") if p.suffix in (".h", ".cuh", ".cu")]
    sources = [ROOT / "setup.py", ROOT / "csrc/toolchain.py", *kernels]
    is_whole = _C.build_info()["cuda"] == ",".join(toolchain.ARCHITECTURES)
    return path if is_whole and path.stat().st_mtime > max(p.stat().st_mtime for p in sources) else None


def kernels(folder: Path, architectures: Iterable[str] = toolchain.ARCHITECTURES) -> list[Code]:
    found, sources = extension(), sorted((ROOT / "csrc").glob("*/cuda/*.cu"))
    return judged(extracted(found, folder) if found else compiled(sources, architectures))

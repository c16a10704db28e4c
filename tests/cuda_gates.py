"""Compiles csrc/cuda for GPUs that are not here, as setup.py does, and reads the machine code of every kernel."""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import machine_code
from machine_code import Code

ROOT = Path(__file__).parents[1]


@functools.cache
def build():
    """setup.py as a module: what it compiles, for which architectures, with which flags."""
    spec = importlib.util.spec_from_file_location("fastmeta_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def missing() -> str | None:
    """Why nothing can be compiled; None where it can."""
    nvcc = build().find_nvcc()
    if nvcc is None:
        return "no nvcc (NVCC, CUDA_HOME, /usr/local/cuda)"
    left = set(build().ARCHITECTURES) - set(build().architectures(nvcc))
    if left:
        return f"nvcc does not know sm_{', sm_'.join(sorted(left))}"
    return None if shutil.which("c++filt") else "no c++filt"


def compiled(source: Path, arch: str, folder: Path) -> bytes:
    cubin = folder / f"{source.stem}.{arch}.cubin"
    flags = build().NVCC_FLAGS.split()
    command = [build().find_nvcc(), *flags, f"-arch=sm_{arch}", "-cubin", source, "-o", cubin]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return cubin.read_bytes()


def short_name(demangled: str) -> str:
    """forward_kernel<float>, of fastmeta::cuda::(anonymous namespace)::forward_kernel<float>(...)."""
    text, depth = demangled.replace("(anonymous namespace)::", ""), 0
    for end, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            text = text[:end]
            break
    return re.sub(r"\b[a-z]\w*::", "", text).removeprefix("void ")


def judged(sources, folder: Path) -> list[Code]:
    """Every kernel of these sources on every architecture."""

    def judge(pair):
        found = machine_code.of_cubin(compiled(*pair, folder), pair[1])
        for code in found:
            code.kernel = short_name(subprocess.check_output(["c++filt", code.kernel], text=True).strip())
        return found

    pairs = [(source, arch) for source in sources for arch in build().ARCHITECTURES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [code for found in pool.map(judge, pairs) for code in found]


def kernels(folder: Path) -> list[Code]:
    return judged(sorted((ROOT / "csrc/cuda").glob("*.cu")), folder)

"""Builds csrc/cuda for the CPU (csrc/cuda/emulation), once for each state of the sources, and makes it the backend "emulated".

Two builds: in "checked", every access to memory goes through the race, initialisation and bounds checker; "sanitized" has
AddressSanitizer and UBSan instead.
"""

import functools
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastmeta import _dispatch

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "csrc"
COMMON = "-std=c++17 -O2 -g1 -fPIC -fvisibility=hidden -Wall"
INSTRUMENT = {"checked": "-fsanitize=thread", "sanitized": "-fsanitize=address,undefined -fno-sanitize-recover=all"}
RUNTIME = ("emulator", "fibers", "checker", "sites", "accesses")  # of csrc/cuda/emulation
HOST = ("arena", "arguments", "parallel", "tensor", "mlp_arguments", "cpu/task_scale")


def compiler() -> list[str]:
    """As in setup.py."""
    found = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if not found:
        pytest.skip("the emulated CUDA kernels need a C++ compiler (CXX, g++, clang++)")
    return shlex.split(found)


def kernel_flags(build: str) -> str:
    return f'{INSTRUMENT[build]} -x c++ -Wno-unknown-pragmas -DFASTMETA_EMULATED="emulation/cuda.h"'


def compile_library(name: str, link: str, sources: list[tuple[Path, str]]) -> Path:
    """The shared library `name` of these sources, each with its flags, from a cache that knows every file in csrc."""
    compile_with = [*compiler(), *COMMON.split(), f"-I{SOURCES / 'cuda'}"]
    used = {*(p for p in SOURCES.rglob("*") if p.is_file()), *(source for source, _ in sources)}
    state = repr((compile_with, link, sources)).encode() + b"".join(p.read_bytes() for p in sorted(used))
    folder = ROOT / "build/emulation" / hashlib.sha256(state).hexdigest()[:16]
    library = folder / f"{name}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [f"{work}/{i}.o" for i in range(len(sources))]
        commands = [
            [*compile_with, *shlex.split(flags, posix=False), "-c", str(source), "-o", made]
            for (source, flags), made in zip(sources, objects, strict=True)
        ]
        list(pool.map(run, commands))
        made = f"{folder}/{os.getpid()}.so"
        run([*compiler(), "-shared", *objects, "-o", made, "-ldl", *link.split()])
    os.replace(made, library)  # whole, whoever else builds it
    return library


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"


def compile_module(build: str) -> Path:
    import pybind11

    python = f"-I{sysconfig.get_paths()['include']} -I{pybind11.get_include()} -DFASTMETA_ISA=baseline"
    kernels = sorted(SOURCES.glob("cuda/*.cu"))
    host = [SOURCES / f"{name}.cpp" for name in (*HOST, *(k.stem for k in kernels if k.stem != "launch"))]
    emulation = [SOURCES / f"cuda/emulation/{name}.cpp" for name in (*RUNTIME, "launchers", "module")]
    sources = [*((k, kernel_flags(build)) for k in kernels), *((h, python) for h in (*host, *emulation))]
    return compile_library("emulated", INSTRUMENT[build] if build == "sanitized" else "", sources)


def compile_planted(build: str) -> Path:
    runtime = [(SOURCES / f"cuda/emulation/{name}.cpp", "") for name in RUNTIME]
    link = INSTRUMENT[build] if build == "sanitized" else ""
    return compile_library("planted", link, [(Path(__file__).with_name("planted.cu"), kernel_flags(build)), *runtime])


@functools.cache
def module() -> ModuleType:
    """The emulated ops, as fastmeta._C has the native ones."""
    path = compile_module(os.environ.get("FASTMETA_EMULATION", "checked"))
    spec = importlib.util.spec_from_file_location("emulated", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    made.init_tensor(torch.Tensor, True)
    return made


def install() -> None:
    """fastmeta.backend("emulated") runs the emulated kernels on CPU tensors; they are built when one is first asked for."""
    of_name = _dispatch._module
    _dispatch.BACKENDS = (*_dispatch.BACKENDS, "emulated")
    _dispatch._module = lambda name, candidate: module() if candidate == "emulated" else of_name(name, candidate)

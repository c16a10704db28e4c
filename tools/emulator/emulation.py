"""Builds the CUDA kernels for the CPU (tools/emulator) and makes it the backend "emulated".

Two builds: in "checked", every access to memory goes through the race, initialisation and bounds checker; in "sanitized",
which FASTMETA_EMULATION=sanitized asks for, AddressSanitizer and UBSan take its place. Objects and libraries are kept in
build/emulation under names that tell what they were made of.
"""

import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fastmeta import _dispatch, _ext
from harness.places import ROOT

SOURCES = ROOT / "csrc"
EMULATOR = ROOT / "tools/emulator"
CACHE = ROOT / "build/emulation"
COMMON = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", f"-I{SOURCES}", f"-I{EMULATOR.parent}")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
BUILDS = {"checked": ("-O2", "-fsanitize=thread"), "sanitized": ("-O0", *SANITIZERS)}
REPORT_ALL = {  # no loop becomes a memcpy, no read is left out before a write
    "g++": ("-fno-tree-loop-distribute-patterns",),
    "clang": ("-mllvm", "-tsan-instrument-read-before-write=1"),
}
RUNTIME = ("emulator", "fibers", "checker", "requests", "sites", "accesses")  # of tools/emulator
DEVICE = (1, 227 * 1024)  # multiprocessors: few, so that blocks take several tasks; bytes of shared memory for a block
HOST = (
    "runtime/arena", "runtime/arguments", "runtime/given", "runtime/parallel", "runtime/tensor", "runtime/warm",
    "inner/narrow_tasks", "inner/network_call", "inner/inner_steps", "inner/mlp_call", "inner/conv_call", "inner/conv_forward",
)  # fmt: skip


@functools.cache
def compiler() -> tuple[str, ...]:
    """As in setup.py."""
    found = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if not found:
        pytest.skip("the emulated CUDA kernels need a C++ compiler (CXX, g++, clang++)")
    return tuple(shlex.split(found))


def made(command: Iterable[str], inputs: Iterable[Path], suffix: str) -> Path:
    """The file that `command` makes with -o out of `inputs`: made now, unless it is there."""
    command = [str(c) for c in command]
    state = repr(command).encode() + b"".join(path.read_bytes() for path in inputs)
    path = CACHE / (hashlib.sha256(state).hexdigest()[:20] + suffix)
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one makes it
        if not path.exists():
            unfinished = path.with_suffix(f".{os.getpid()}{suffix}")
            done = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True)
            assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
            unfinished.rename(path)  # whole, wherever this process ends
    return path


def kept(state: Iterable[bytes], suffix: str, make: Callable[[], Any]) -> Any:
    """What `make` gives, as JSON has it: made now, unless it is there. `state` is all that it depends on."""
    path = CACHE / (hashlib.sha256(b"|".join(state)).hexdigest()[:20] + suffix)
    if not path.exists():
        found = json.dumps(make())
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=CACHE, delete=False) as unfinished:
            unfinished.write(found)
        Path(unfinished.name).rename(path)  # whole, wherever this process ends
    return json.loads(path.read_text())


def library(build: str, kernels: Iterable[Path], others: dict[Path, tuple[str, ...]]) -> Path:
    """The shared library of these kernels, of other sources with their flags, and of the emulator."""
    folders = (SOURCES, EMULATOR)
    headers = {
        suffix: sorted(p for f in folders for p in f.rglob(f"*{suffix}")) for suffix in (".h", ".cuh")
    }  # .cuh: of kernels alone
    of_kernels = ("-g1", "-x", "c++", "-Wno-unknown-pragmas", '-DFASTMETA_EMULATED="emulator/cuda.h"', *BUILDS[build])
    if build == "checked":
        clang = "clang" in subprocess.check_output([*compiler(), "--version"], text=True)
        of_kernels += REPORT_ALL["clang" if clang else "g++"]
    flags = dict.fromkeys(kernels, of_kernels) | others
    flags |= {EMULATOR / f"{name}.cpp": ("-O2",) for name in RUNTIME}

    def compile_object(source: Path) -> Path:
        included = (Path(flag) for flag in flags[source] if flag.endswith(".cpp"))
        used = (source, *included, *headers[".h"], *(headers[".cuh"] if source.suffix == ".cu" else ()))
        return made((*compiler(), *COMMON, *flags[source], "-c", source), used, ".o")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_object, flags))
    sanitizers = SANITIZERS if build == "sanitized" else ()
    return made((*compiler(), "-shared", *objects, "-ldl", *sanitizers), (), ".so")


def compile_module(build: str) -> Path:
    import pybind11

    kernels = sorted(SOURCES.glob("*/cuda/*.cu"))
    ops = sorted(
        f"inner/{path.stem}" for path in SOURCES.glob("inner/network_*.cpp") if f"inner/{path.stem}" not in HOST
    )
    python = (f"-I{sysconfig.get_paths()['include']}", f"-I{pybind11.get_include()}", "-DFASTMETA_ISA=baseline")
    at_once = (word for name in (*HOST, *ops) for word in ("-include", f"{SOURCES / name}.cpp"))  # pybind11 is long
    host = {EMULATOR / "module.cpp": ("-O0", "-fopenmp-simd", *python, *at_once), EMULATOR / "launchers.cpp": ("-O1",)}
    return library(build, kernels, host)


def compile_planted(build: str) -> Path:
    return library(build, [Path(__file__).with_name("planted.cu"), SOURCES / "runtime/cuda/launch.cu"], {})


@functools.cache
def module() -> ModuleType:
    """The emulated ops, as fastmeta._C has the native ones."""
    path = compile_module(os.environ.get("FASTMETA_EMULATION", "checked"))
    spec = importlib.util.spec_from_file_location("emulated", path)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    found.init_tensor(torch.Tensor, True)
    found.init_values(_ext.in_memory, *_ext.key_places())
    reset(found)
    return found


def reset(emulator: ModuleType) -> None:
    emulator.set_order("random", 0)
    emulator.set_device(*DEVICE)


class ByLayer:
    """The emulated ops on a device whose blocks have no shared memory for a task's arrays: what can goes layer by layer."""

    def __getattr__(self, name):
        function = getattr(module(), name)  # AttributeError for an op without backward

        def call(*arguments):
            module().set_device(DEVICE[0], 0)
            try:
                return function(*arguments)
            finally:
                module().set_device(*DEVICE)

        return call


def install() -> None:
    """fastmeta.backend("emulated") runs the emulated kernels on CPU tensors; they are built when one is first asked for.
    "emulated-layers": layer by layer."""
    known, of_name = _dispatch._known, _dispatch._module
    made = {"emulated": module, "emulated-layers": ByLayer}
    _dispatch._known = lambda name: name if isinstance(name, str) and name in made else known(name)
    _dispatch._module = lambda name, candidate: made[candidate]() if candidate in made else of_name(name, candidate)


def launches(call: Callable[[], object], backend: str = "emulated") -> int:
    """How many launches a call makes."""
    before = module().launches()
    with _dispatch.backend(backend):
        call()
    return module().launches() - before

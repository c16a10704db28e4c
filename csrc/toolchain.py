"""What compiles the native kernels: the compilers here, their flags, the file for ninja, and its run. setup.py has the variables."""

import contextlib
import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from setuptools.errors import BaseError

SOURCES = Path(__file__).parent.resolve()
ARCHITECTURES = ("80", "90a", "100", "120")  # what FASTMETA_CUDA_ARCHS=all means
CXX_FLAGS = (  # of -O3 what makes loops faster; the hot ones have vectors of their own, and the rest takes the compiler longer
    "-std=c++17 -O2 -ftree-vectorize -fvect-cost-model=dynamic -funswitch-loops -fpeel-loops "
    "-fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -fopenmp-simd -Wall"
)
NVCC_FLAGS = "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden -Xfatbin=-compress-all --threads 2"
LINK_FLAGS = "-pthread -ldl -Wl,--gc-sections -static-libstdc++ -static-libgcc -s"
SANITIZE_FLAGS = (
    "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined"  # with FASTMETA_SANITIZE, see the Makefile
)
X86 = {
    "avx512": "-march=x86-64-v4 -mprefer-vector-width=512 -ffp-contract=fast",
    "avx2": "-mavx2 -mfma -mbmi2 -ffp-contract=fast",
    "baseline": "-O1",  # for processors of before 2013
}
ARM = {  # NEON; the tiles take all 32 registers, which GCC's first scheduling would overdraw; Clang has none and would warn
    "baseline": "-ffp-contract=fast -fno-schedule-insns -Wno-ignored-optimization-argument"
}
ISAS = {
    "x86_64": X86,
    "AMD64": X86,
    "aarch64": ARM,
    "arm64": ARM,
}  # by platform.machine(); others: baseline without flags


class BuildError(BaseError):
    """The native kernels cannot be built as asked for; one line for the user."""


def find_cxx() -> str:
    """$CXX, which may have options and a launcher before it, or the first compiler on the path; in the shell's words."""
    cxx = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), "")
    words = [cxx] if shutil.which(cxx) else shlex.split(cxx)
    if not (words and shutil.which(words[0])):
        raise BuildError("no C++ compiler was found (CXX, g++, clang++)")
    return shlex.join(words)


def find_nvcc() -> Path | None:
    """$NVCC, $CUDA_HOME/bin/nvcc, nvcc on the path, or the usual folder."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    candidates = (os.environ.get("NVCC"), f"{home}/bin/nvcc", shutil.which("nvcc"))
    return next((Path(c).resolve() for c in candidates if c and Path(c).exists()), None)


def find_cudart(nvcc: Path) -> Path | None:
    """The static CUDA runtime that belongs to nvcc."""
    dryrun = subprocess.run([nvcc, "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True).stderr
    tops = [line.split("TOP=")[1].strip() for line in dryrun.splitlines() if "TOP=" in line]
    roots = [Path(top).resolve() for top in tops] + [nvcc.parent.parent]
    libraries = (
        root / folder / "libcudart_static.a"
        for root in roots
        for folder in ("lib64", "targets/x86_64-linux/lib", "lib")
    )
    return next((library for library in libraries if library.exists()), None)


def architectures(nvcc: Path, wanted: tuple[str, ...] = ARCHITECTURES) -> list[str]:
    """Those of `wanted` that nvcc compiles for."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    return [a for a in wanted if f"sm_{a.rstrip('a')}" in listed]


def gpus() -> tuple[str, ...]:
    """The architectures of the GPUs that the driver shows."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    found = set()
    for device in range(count.value):
        driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
        found.add(f"{major.value}{minor.value}")
    ours = {a.rstrip("a"): a for a in ARCHITECTURES}
    return tuple(ours.get(arch, arch) for arch in sorted(found, key=int))


class Cuda(NamedTuple):
    nvcc: Path
    cudart: Path
    architectures: list[str]


def find_cuda(wanted: str) -> Cuda:
    """What FASTMETA_BUILD=`wanted` builds for GPUs; BuildError with the reason where that is nothing."""
    asked, seen = os.environ.get("FASTMETA_CUDA_ARCHS", ""), gpus()
    if wanted == "cpu":
        raise BuildError("FASTMETA_BUILD=cpu leaves it out")
    if wanted == "auto" and not (asked or seen):
        raise BuildError("no GPU was seen; FASTMETA_BUILD=cuda builds for any")
    nvcc = find_nvcc()
    cudart = find_cudart(nvcc) if nvcc else None
    if not (nvcc and cudart):
        raise BuildError("no nvcc with libcudart_static.a was found (NVCC, CUDA_HOME, /usr/local/cuda)")
    named = tuple(filter(None, asked.replace(" ", "").split(","))) if asked != "all" else ()
    found = architectures(nvcc, named or (seen if not asked else ()) or ARCHITECTURES)
    if len(found) < len(named):
        raise BuildError(f"FASTMETA_CUDA_ARCHS must be architectures that nvcc knows, or all, got {asked!r}")
    found = [a for a in found if int(a.rstrip("a")) >= int(ARCHITECTURES[0])]
    if not found:
        raise BuildError(f"the CUDA kernels need sm_{ARCHITECTURES[0]} or later, and an nvcc that knows the GPU")
    return Cuda(nvcc, cudart, found)


def run_ninja(work: Path) -> list[str]:
    """Builds what is in `work`, progress to stdout; the compiler's first errors, none where all went well."""
    with contextlib.suppress(ImportError):
        import ninja

        os.environ["PATH"] = f"{ninja.BIN_DIR}{os.pathsep}{os.environ['PATH']}"
    jobs, verbose = os.environ.get("MAX_JOBS"), os.environ.get("FASTMETA_VERBOSE")
    command = ["ninja", *(["-j", jobs] if jobs else []), *(["-v"] if verbose else [])]
    try:
        process = subprocess.Popen(
            command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except FileNotFoundError:
        return ["no ninja was found"]
    lines = []
    assert process.stdout
    for line in process.stdout:
        lines.append(line.rstrip())
        on_one_line = sys.stdout.isatty() and line.startswith("[") and not verbose
        print(f"\r{line.rstrip()}\x1b[K" if on_one_line else line, end="", flush=True)
    if process.wait() == 0:
        return []
    errors = [line for line in lines if "error" in line.lower() and not line.startswith(("FAILED", "["))]
    return errors[:3] or lines[-3:]


def objects_of(cuda: Cuda | None, isas: dict[str, str]) -> list[tuple[str, str, str, str]]:
    """(object, rule, source, flags) of all; what takes longest first, so that no core waits for it at the end."""
    flags = "-Icsrc -Iinclude -Iinclude/python" + " -DFASTMETA_CUDA" * bool(cuda)
    objects = [(f"{path}.o", "nvcc", f"csrc/{path}.cu", "-Icsrc") for path in sources("*/cuda/*.cu") if cuda]
    objects.append(("bindings.o", "cxx", "csrc/bindings.cpp", f"{flags} -Iinclude/pybind11"))
    for isa, of_isa in isas.items():
        of_isa += f" -Icsrc -DFASTMETA_ISA={isa}"
        objects += [(f"{isa}/{path}.o", "cxx", f"csrc/{path}.cpp", of_isa) for path in sources("*/cpu/*.cpp")]
    return objects + [(f"{path}.o", "cxx", f"csrc/{path}.cpp", flags) for path in sources("*/*.cpp")]


def sources(pattern: str) -> list[Path]:
    """The files of csrc that the pattern finds, without what their names end in."""
    return sorted(path.relative_to(SOURCES).with_suffix("") for path in SOURCES.glob(pattern))


def ninja_file(cxx: str, cuda: Cuda | None) -> str:
    """Builds _C.so. All its paths are below the folder where ninja runs (see setup.py)."""
    isas = ISAS.get(platform.machine(), {"baseline": ""})
    objects = objects_of(cuda, isas)
    builds = "\n".join(f"build {o}: {rule} {source}\n  flags = {flags}" for o, rule, source, flags in objects)
    compile_cxx = f"{cxx} {CXX_FLAGS}" + " -DFASTMETA_X86" * (isas is X86)
    compile_cuda, link = "false", f"{LINK_FLAGS}"
    if os.environ.get("FASTMETA_SANITIZE"):
        compile_cxx, link = f"{compile_cxx} {SANITIZE_FLAGS}", f"{link.removesuffix(' -s')} {SANITIZE_FLAGS}"
    if cuda:
        codes = [f"-gencode arch=compute_{a},code=sm_{a}" for a in cuda.architectures]
        codes += [f"-gencode arch=compute_{a},code=compute_{a}" for a in cuda.architectures[-1:] if a[-1] != "a"]  # PTX
        compile_cuda = f"{shlex.quote(str(cuda.nvcc))} {NVCC_FLAGS} {' '.join(codes)}"
        link += f" {shlex.quote(str(cuda.cudart))} -lrt"
    cxx, compile_cxx, compile_cuda, link = (s.replace("$", "$$") for s in (cxx, compile_cxx, compile_cuda, link))
    return f"""
rule cxx
  command = {compile_cxx} $flags -MMD -MF $out.d -c $in -o $out
  description = compiling $out
  depfile = $out.d
  deps = gcc
rule nvcc
  command = {compile_cuda} $flags -MD -MF $out.d -c $in -o $out
  description = compiling $out
  depfile = $out.d
  deps = gcc
rule link
  command = {cxx} -shared $in -o $out {link}
  description = linking $out
{builds}
build _C.so: link {" ".join(o for o, *_ in objects)}
"""

"""Builds fastmeta._C with ninja: no torch needed. FASTMETA_BUILD = auto (default) | cuda | cpu | none."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError

ROOT = Path(__file__).parent.resolve()
SOURCES = ROOT / "csrc"
ARCHITECTURES = ("80", "90a", "100", "120")
CXX_FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -fopenmp-simd -Wall"
NVCC_FLAGS = "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden -Xfatbin=-compress-all --threads 2"
ISAS = {
    "baseline": "",
    "avx2": "-mavx2 -mfma -mbmi2 -ffp-contract=fast",
    "avx512": "-march=x86-64-v4 -mprefer-vector-width=512 -ffp-contract=fast",
}


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


def architectures(nvcc: Path) -> list[str]:
    """Those of ARCHITECTURES that nvcc compiles for."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    return [a for a in ARCHITECTURES if f"sm_{a.rstrip('a')}" in listed]


class BuildError(BaseError):
    """The native kernels cannot be built as asked for; one line for the user."""


class Ninja(build_ext):
    """Writes one build.ninja for C++ (each CPU instruction set) and CUDA, and runs it."""

    def run(self) -> None:
        wanted = os.environ.get("FASTMETA_BUILD", "auto")
        if wanted not in ("auto", "cuda", "cpu", "none"):
            raise BuildError(f"FASTMETA_BUILD must be auto, cuda, cpu or none, got {wanted!r}")
        self.cxx = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
        self.nvcc = find_nvcc() if wanted in ("auto", "cuda") else None
        self.cudart = find_cudart(self.nvcc) if self.nvcc else None
        self.architectures = architectures(self.nvcc) if self.nvcc and self.cudart else []
        missing = None
        if not (self.cxx and shutil.which(self.cxx.split()[0])):
            missing = "no C++ compiler was found (CXX, g++, clang++)"
        elif wanted == "cuda" and not self.architectures:
            missing = "no nvcc with libcudart_static.a was found (NVCC, CUDA_HOME, /usr/local/cuda)"
        if wanted == "none" or (missing and wanted == "auto"):
            why = missing or "FASTMETA_BUILD=none"
            print(f"fastmeta: installing the pure-Python package, without native kernels: {why}", file=sys.stderr)
            return
        if missing:
            raise BuildError(f"FASTMETA_BUILD={wanted} cannot be met: {missing}")
        super().run()

    def build_extension(self, ext: Extension) -> None:
        out = Path(self.get_ext_fullpath(ext.name)).resolve()
        work = Path(self.build_temp).resolve()
        out.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        (work / "build.ninja").write_text(self.ninja_file(out))
        try:
            import ninja

            runner = os.path.join(ninja.BIN_DIR, "ninja")
        except ImportError:
            runner = "ninja"
        verbose = ["-v"] if os.environ.get("FASTMETA_VERBOSE") else []
        if subprocess.run([runner, "-C", str(work), *verbose]).returncode:
            less = "cpu (without CUDA) or none (pure Python)" if self.architectures else "none (pure Python)"
            raise BuildError(
                f"the native kernels must compile, see the messages above; FASTMETA_BUILD={less} installs less"
            )

    def ninja_file(self, out: Path) -> str:
        import pybind11

        includes = f"-I{sysconfig.get_paths()['include']} -I{pybind11.get_include()}"
        x86 = platform.machine() in ("x86_64", "AMD64")
        defines = " -DFASTMETA_X86" if x86 else ""
        link = "-pthread -ldl -Wl,--gc-sections -static-libstdc++ -static-libgcc -s"
        objects = []  # what takes longest first: no core waits for it at the end
        if self.architectures:
            defines += f' -DFASTMETA_CUDA=\\"{",".join(self.architectures)}\\"'
            link += f" {self.cudart} -lrt"
            objects += [(f"cuda/{s.stem}.o", "nvcc", s, "") for s in sorted(SOURCES.glob("cuda/*.cu"))]
        objects += [(f"{s.stem}.o", "cxx", s, includes) for s in sorted(SOURCES.glob("*.cpp"))]
        objects += [
            (f"{isa}/{s.stem}.o", "cxx", s, f"{flags} -DFASTMETA_ISA={isa}")
            for isa, flags in (ISAS if x86 else {"baseline": ""}).items()
            for s in sorted(SOURCES.glob("cpu/*.cpp"))
        ]
        codes = "".join(f" -gencode arch=compute_{a},code=sm_{a}" for a in self.architectures)
        codes += "".join(f" -gencode arch=compute_{a},code=compute_{a}" for a in self.architectures[-1:])  # PTX
        builds = "\n".join(f"build {o}: {rule} {source}\n  flags = {flags}" for o, rule, source, flags in objects)
        return f"""
rule cxx
  command = {self.cxx} {CXX_FLAGS}{defines} -DFASTMETA_COMPILER=\\"{Path(self.cxx.split()[0]).name}\\" $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule nvcc
  command = {self.nvcc} {NVCC_FLAGS}{codes} -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {self.cxx} -shared $in -o $out {link}
{builds}
build {out}: link {" ".join(o for o, *_ in objects)}
"""


if __name__ == "__main__":
    setup(
        packages=[
            "fastmeta",
            "fastmeta.data",
            "fastmeta.integrations",
            "fastmeta.integrations.easyfsl",
            "fastmeta.integrations.easyfsl.methods",
            "fastmeta.integrations.higher",
            "fastmeta.integrations.learn2learn",
            "fastmeta.integrations.learn2learn.algorithms",
            "fastmeta.integrations.torchopt",
            "fastmeta.kernels",
            "fastmeta.learners",
            "fastmeta.ops",
            "fastmeta.reference",
        ],
        package_dir={"fastmeta.kernels": "kernels"},
        package_data={"fastmeta": ["py.typed"]},
        ext_modules=[Extension("fastmeta._C", sources=[])],
        cmdclass={"build_ext": Ninja},
    )

"""Builds fastmeta._C with ninja: no torch needed.

FASTMETA_BUILD: auto (default): what can be built here, CUDA where a GPU is seen, else the pure-Python package and a message that
says why; cpu, cuda: that, or an error; none: the pure-Python package. FASTMETA_CUDA_ARCHS: "80,90a" or "all", in place of those
of the GPUs seen. CXX, NVCC, CUDA_HOME: the compilers. MAX_JOBS: how many at once. FASTMETA_VERBOSE=1: their command lines.
FASTMETA_ORIGIN: "wheel" in what `make wheel` makes, for fastmeta.info.
"""

import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import ClassVar

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent.resolve() / "csrc"))
from toolchain import BuildError, Cuda, find_cuda, find_cxx, ninja_file, run_ninja

ROOT = Path(__file__).parent.resolve()
EXTENSION = "fastmeta._C"


def link_to(link: Path, target: Path) -> None:
    """A symbolic link, made anew where it leads elsewhere."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if not (link.is_symlink() and link.readlink() == target):
        link.unlink(missing_ok=True)
        link.symlink_to(target)


class Ninja(build_ext):
    """Writes one build.ninja for C++ (each CPU instruction set) and CUDA, and runs it.

    ninja, the shell and depfiles each have characters that they take amiss: all that the compiler sees are paths below the
    build folder, where symbolic links lead to the sources and headers.
    """

    def finalize_options(self) -> None:
        is_chosen = self.build_temp is not None
        super().finalize_options()
        self.in_place = bool(self.inplace or self.editable_mode)
        if self.in_place and not is_chosen:  # so that the next time compiles what has changed
            self.build_temp = str(ROOT / "build" / f"native-{sysconfig.get_platform()}-{sys.implementation.cache_tag}")

    def run(self) -> None:
        wanted = os.environ.get("FASTMETA_BUILD", "auto")
        if wanted not in ("auto", "cuda", "cpu", "none"):
            raise BuildError(f"FASTMETA_BUILD must be auto, cuda, cpu or none, got {wanted!r}")
        try:
            if wanted == "none":
                is_wheel = os.environ.get("FASTMETA_ORIGIN") == "wheel"
                raise BuildError("this wheel is for every platform" if is_wheel else "FASTMETA_BUILD=none")
            self.cxx = find_cxx()
            self.cuda, self.no_cuda = self.choose_cuda(wanted)
            self.build_all()
            self.note().unlink(missing_ok=True)
        except BuildError as error:
            if wanted in ("cpu", "cuda"):
                raise BuildError(f"FASTMETA_BUILD={wanted} cannot be met: {error}") from None
            self.without_kernels(str(error))

    def build_all(self) -> None:
        """As build_ext.run, without its compiler, which takes CXX apart in a way of its own."""
        inplace, self.inplace = self.inplace, False
        for ext in self.extensions:
            self.build_extension(ext)
        self.inplace = inplace
        if inplace:
            self.copy_extensions_to_source()

    def choose_cuda(self, wanted: str) -> tuple[Cuda | None, str]:
        """What to build for GPUs, or why nothing."""
        try:
            return find_cuda(wanted), ""
        except BuildError as error:
            if wanted == "cuda":
                raise
            return None, str(error)

    def note(self) -> Path:
        """The file beside the extension that says why there is none, for fastmeta.info."""
        return (ROOT if self.in_place else Path(self.build_lib)) / "fastmeta/_C_missing.txt"

    def without_kernels(self, why: str) -> None:
        print(f"fastmeta: installing the pure-Python package, without native kernels: {why}", file=sys.stderr)
        self.extensions = []
        for folder in (Path(self.build_lib), self.note().parent.parent):
            (folder / self.get_ext_filename(EXTENSION)).unlink(missing_ok=True)  # of an earlier build
        self.note().parent.mkdir(parents=True, exist_ok=True)
        self.note().write_text(why + "\n", encoding="utf-8")

    def build_extension(self, ext: Extension) -> None:
        out, work = Path(self.get_ext_fullpath(ext.name)).resolve(), Path(self.build_temp).resolve()
        errors = self.compile(work)
        if errors and self.cuda and os.environ.get("FASTMETA_BUILD", "auto") == "auto":
            self.cuda, self.no_cuda = None, f"nvcc failed: {errors[0]}"
            print("fastmeta: leaving CUDA out, which does not compile:", *errors, sep="\n  ", file=sys.stderr)
            errors = self.compile(work)
        if errors:
            raise BuildError("\n  ".join(["the native kernels must compile, got", *errors]))
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(work / "_C.so", out.with_suffix(".new"))
        out.with_suffix(".new").replace(out)  # what runs now keeps the old one

    def compile(self, work: Path) -> list[str]:
        """Makes _C.so in `work`; the first errors, none where all went well."""
        try:
            import pybind11
        except ImportError:
            return ["no pybind11 was found"]
        link_to(work / "csrc", ROOT / "csrc")
        link_to(work / "include/python", Path(sysconfig.get_paths()["include"]))
        link_to(work / "include/pybind11", Path(pybind11.get_include()))
        facts = {"ORIGIN": os.environ.get("FASTMETA_ORIGIN", "source")}
        facts |= {"CUDA": ",".join(self.cuda.architectures)} if self.cuda else {"NO_CUDA": self.no_cuda}
        lines = "".join(f"#define FASTMETA_BUILD_{name} {json.dumps(text)}\n" for name, text in facts.items())
        header = work / "include/build.h"
        if not header.exists() or header.read_text() != lines:
            header.write_text(lines)
        (work / "build.ninja").write_text(ninja_file(self.cxx, self.cuda))
        return run_ninja(work)


class Build(build):
    """With build_ext where there is no extension too: it says why."""

    sub_commands: ClassVar = [(name, None if name == "build_ext" else test) for name, test in build.sub_commands]


if __name__ == "__main__":
    is_pure = os.environ.get("FASTMETA_BUILD") == "none"
    setup(
        packages=[
            "fastmeta",
            "fastmeta.data",
            "fastmeta.distance",
            "fastmeta.heads",
            "fastmeta.inner",
            "fastmeta.integrations",
            "fastmeta.integrations.easyfsl",
            "fastmeta.integrations.easyfsl.methods",
            "fastmeta.integrations.higher",
            "fastmeta.integrations.learn2learn",
            "fastmeta.integrations.learn2learn.algorithms",
            "fastmeta.integrations.torchopt",
            "fastmeta.kernels",
            "fastmeta.learners",
            "fastmeta.networks",
            "fastmeta.reference",
        ],
        package_dir={"fastmeta.kernels": "kernels"},
        package_data={"fastmeta": ["py.typed"]},
        ext_modules=[] if is_pure else [Extension(EXTENSION, sources=[])],
        cmdclass={"build": Build, "build_ext": Ninja},
    )

"""python -m fastmeta.info: versions, what is built, and which backend runs each op where."""

from __future__ import annotations

import platform
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from . import __version__, _dispatch, reference

DEVICES = (("triton", "cuda"), ("triton", "cpu"), ("ext", "cpu"), ("ext", "cuda"))


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def extension() -> list[str]:
    """The build of fastmeta._C, or why there is none and how to get it."""
    try:
        ext = import_module("fastmeta._ext")
    except ImportError as error:
        return without_extension(str(error))
    build, runnable = ext.build_info(), ext.isas()
    origin = "a wheel" if build["origin"] == "wheel" else "built from source"
    cuda = f"for sm_{build['cuda'].replace(',', ', sm_')}" if build["cuda"] else f"none: {build['no_cuda']}"
    return [
        f"{origin}, {build['compiler']}",
        f"CPU instruction set {ext.isa()} (built: {build['isas']}; this processor runs: {', '.join(runnable)})",
        f"threads {ext.num_threads()} of {ext.openmp or 'no OpenMP runtime found: one thread'}",
        f"CUDA kernels {cuda}",
    ]


def without_extension(error: str) -> list[str]:
    """Why there is no extension, as setup.py noted it, or as the import failed."""
    note = Path(__file__).with_name("_C_missing.txt")
    why = note.read_text(encoding="utf-8").strip() if note.exists() else error
    if sys.platform == "linux":
        how = "with g++ or clang++ on the path, install again from source; FASTMETA_BUILD=cpu stops where that fails, and says why"
    else:
        how = f"the native kernels are for Linux, got {platform.system()}"
    return [f"none: {why}", f"to get it: {how}", "until then every op runs on plain PyTorch"]


def table() -> list[str]:
    """One line for each op: which backend has kernels on which device, and the reasons where one has none."""
    rows: list[str] = []
    reasons: dict[str, int] = {}
    for op in sorted(set(reference.__all__).difference(_dispatch.WITHOUT_KERNELS)):
        cells = []
        for name, device in DEVICES:
            reason = _dispatch.unavailable(op, name, _current(device))
            mark = "yes" if reason is None else f"[{reasons.setdefault(reason, len(reasons) + 1)}]"
            cells.append(f"{mark:>14}")
        rows.append(f"  {op:<20}" + "".join(cells))
    header = "  " + " " * 20 + "".join(f"{f'{name} {device}':>14}" for name, device in DEVICES)
    return [header, *rows, *(f"  [{number}] {reason}" for reason, number in reasons.items())]


def _current(device: str) -> torch.device:
    on_cuda = device == "cuda" and torch.cuda.is_available()
    return torch.device(device, torch.cuda.current_device()) if on_cuda else torch.device(device)


def main() -> None:
    print(f"fastmeta {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    print(f"torch {torch.__version__}, triton {installed('triton')}")
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        print(f"GPU: {torch.cuda.get_device_name()}, sm_{major}{minor}, CUDA {torch.version.cuda}")
    else:
        print("GPU: none")
    print("fastmeta._C:", *(f"\n  {line}" for line in extension()))
    print("Kernels (everything runs on the reference too, on any device):", *table(), sep="\n")


if __name__ == "__main__":
    main()

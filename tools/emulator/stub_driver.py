"""A CUDA driver that runs nothing (stub_driver.c), for the host's part of a call on a machine without a GPU.

`install()` is for a process of its own, before anything imports triton: from then on Triton compiles its kernels for sm_90 and
launches them on CPU tensors, whose numbers stay as they are. To fastmeta these tensors count as a GPU's: no check looks at them.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness.places import ROOT

SOURCE = Path(__file__).with_suffix(".c")
FOLDER = ROOT / "build/stub_driver"


def why_not() -> str | None:
    """What is missing here, or None."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    return None if shutil.which("cc") else "needs a C compiler, cc"


def compiled() -> Path:
    """The folder of the driver that triton links with and loads."""
    library = FOLDER / "libcuda.so.1"
    if not library.exists() or library.stat().st_mtime < SOURCE.stat().st_mtime:
        FOLDER.mkdir(parents=True, exist_ok=True)
        new = FOLDER / f"{os.getpid()}.so"
        command = ["cc", "-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", new, SOURCE]
        subprocess.run(command, check=True)
        new.rename(library)
    link = FOLDER / "libcuda.so"
    if not link.exists():
        link.symlink_to(library.name)
    return FOLDER


def linked() -> Path | None:
    """fastmeta._C of the objects that setup.py has left, on this driver; None where it was built without CUDA."""
    work = ROOT / "build" / f"native-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    lines = (work / "build.ninja").read_text().splitlines() if (work / "build.ninja").exists() else []
    objects = next((line.split()[3:] for line in lines if line.startswith("build _C.so:")), [])
    if "inner/cuda/mlp_meta_loss.o" not in objects or not (work / "_C.so").exists():
        return None
    library = compiled() / "_C.so"
    if not library.exists() or library.stat().st_mtime < (work / "_C.so").stat().st_mtime:
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        new = FOLDER / f"{os.getpid()}.so"
        subprocess.run([*compiler, "-shared", *objects, "-o", new, "-pthread", "-ldl"], cwd=work, check=True)
        new.rename(library)
    return library


def install_extension(driver: ctypes.CDLL) -> None:
    """fastmeta._C becomes `linked`, to which every tensor lies on the device."""
    import torch

    library = linked()
    assert library
    spec = importlib.util.spec_from_file_location("fastmeta._C", library)
    assert spec and spec.loader
    sys.modules["fastmeta._C"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["fastmeta._C"])
    python, name = ctypes.pythonapi, b"dlpack_exchange_api"
    python.PyCapsule_GetPointer.restype, python.PyCapsule_New.restype = ctypes.c_void_p, ctypes.py_object
    python.PyCapsule_GetPointer.argtypes = ctypes.py_object, ctypes.c_char_p
    python.PyCapsule_New.argtypes = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
    driver.stub_exchange.restype, driver.stub_exchange.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
    theirs: Any = torch.Tensor
    given = python.PyCapsule_GetPointer(theirs.__dlpack_c_exchange_api__, name)
    theirs.__dlpack_c_exchange_api__ = python.PyCapsule_New(driver.stub_exchange(given), name, None)


def install(extension: bool = False) -> SimpleNamespace:
    """The driver: `launches()`, `modules()` that were loaded, the last launch's `stream()`; and `here`, whose `device` and `stream` are
    the current ones. With `extension` that launches by it too, and checks no label."""
    folder = compiled()
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "cache")
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    library = ctypes.CDLL(str(folder / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)
    library.stub_launches.restype = library.stub_modules.restype = ctypes.c_int64
    library.stub_stream.restype = ctypes.c_void_p

    if extension:
        install_extension(library)
    import triton  # noqa: F401, first
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime.driver import driver

    from fastmeta import _dispatch, _route

    here = SimpleNamespace(device=0, stream=0)

    class Stub(CudaDriver):
        def __init__(self) -> None:
            super().__init__()
            self.get_current_device = lambda: here.device
            self.get_current_stream = lambda device: here.stream

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    driver.set_active(Stub())
    _dispatch._triton_missing = lambda device: None
    _route.UNSEEN.add("cpu")
    return SimpleNamespace(
        launches=library.stub_launches, modules=library.stub_modules, stream=library.stub_stream, here=here,
    )  # fmt: skip

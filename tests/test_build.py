"""setup.py: FASTMETA_BUILD chooses what is built, and says so where that cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NO_NVCC = {"CUDA_HOME": "/nowhere", "NVCC": "", "PATH": "/nowhere"}


def build(tmp_path, **env):
    """build_ext with these environment variables; nothing of this checkout changes."""
    command = [sys.executable, "setup.py", "build_ext", f"--build-lib={tmp_path}", f"--build-temp={tmp_path / 'work'}"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"FASTMETA_BUILD": "gpu"}, "FASTMETA_BUILD must be auto, cuda, cpu or none, got 'gpu'"),
        (
            {"FASTMETA_BUILD": "cpu", "CXX": "/nowhere/g++"},
            "FASTMETA_BUILD=cpu cannot be met: no C++ compiler was found",
        ),
        ({"FASTMETA_BUILD": "cuda", "CXX": sys.executable} | NO_NVCC, "FASTMETA_BUILD=cuda cannot be met: no nvcc"),
        ({"FASTMETA_BUILD": "cpu", "CXX": "false"}, "the native kernels must compile, see the messages above"),
    ],
)
def test_what_cannot_be_built_is_one_line(tmp_path, env, words):
    process = build(tmp_path, **env)
    assert process.returncode != 0
    assert [line for line in process.stderr.splitlines() if line.startswith("error: ") and words in line], (
        process.stderr
    )
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("env", [{"FASTMETA_BUILD": "auto", "CXX": "/nowhere/g++"}, {"FASTMETA_BUILD": "none"}])
def test_without_native_kernels(tmp_path, env):
    process = build(tmp_path, **env)
    assert process.returncode == 0, process.stderr
    assert "installing the pure-Python package, without native kernels: " in process.stderr
    assert not list(tmp_path.rglob("*.so"))

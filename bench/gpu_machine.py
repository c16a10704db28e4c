"""The versions that a result depends on, and what is missing here."""

import importlib
import importlib.util
import platform
import subprocess
from datetime import UTC, datetime

import torch

PACKAGES = ("pytest", "hypothesis", "xdist", "triton", "pybind11", "ninja", "setuptools")


def machine(name, device):
    facts = {"device": name, "date": f"{datetime.now(UTC):%Y-%m-%d}", "Python": platform.python_version()}
    facts |= {"torch": torch.__version__, "CUDA of torch": torch.version.cuda or "none"}
    absent = [package for package in PACKAGES if not importlib.util.find_spec(package)]
    if device == "cuda":
        facts["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        facts["driver"] = first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        facts["nvcc"] = first_line("sh", "-c", "nvcc --version | grep release")
    if importlib.util.find_spec("triton"):
        facts["triton"] = importlib.import_module("triton").__version__
    return facts | {"missing packages": ", ".join(absent) or "none"}


def first_line(*command):
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    return found.splitlines()[0] if found else "unknown"

"""What a result depends on: the machine and the versions, and what is missing here."""

import importlib
import importlib.util
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

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


def processor():
    """The processor's model and how many of its cores are ours to use."""
    models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    cores = len(os.sched_getaffinity(0))
    return f"{models[0] if models else platform.machine()}, {cores} core{'s' if cores > 1 else ''}"


def file_name(device):
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def first_line(*command):
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    return found.splitlines()[0] if found else "unknown"

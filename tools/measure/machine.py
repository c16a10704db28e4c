"""What a result depends on: the machine and the versions, what is missing here, and how fast the machine is at best."""

import functools
import importlib
import importlib.util
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

import fastmeta
from measure.timing import per_call

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


# What keeps a library to an instruction set, if it has not computed yet.
LIMITS = {
    "ATEN_CPU_CAPABILITY": str.lower,
    "ONEDNN_MAX_CPU_ISA": str.upper,
    "MKL_ENABLE_INSTRUCTIONS": str.upper,
    "XLA_FLAGS": lambda isa: f"--xla_cpu_max_isa={isa.upper()}",
}


def hold_to(isa):
    """Let fastmeta, torch and JAX use `isa` ("avx2") alone, as on a processor that has no better one."""
    os.environ.update({name: spelt(isa) for name, spelt in LIMITS.items()})
    importlib.import_module("torch._inductor.config").cpp.simdlen = 256
    fastmeta._C.set_isa(isa)


def processor():
    """The processor's model and how many of its cores are ours to use; and what it was held to."""
    models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    cores = len(os.sched_getaffinity(0))
    held = f", {fastmeta._C.isa()} alone" if fastmeta._C.isa() != fastmeta._C.isas()[-1] else ""
    return f"{models[0] if models else platform.machine()}, {cores} core{'s' if cores > 1 else ''}{held}"


def file_name(device):
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def first_line(*command):
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    return found.splitlines()[0] if found else "unknown"


def floor(size, flops, threads=None, device="cpu"):
    """Seconds for `size` bytes from and to memory and `flops` operations: whichever takes longer."""
    bandwidth, rate = ceilings(threads, device)
    return max(size / bandwidth, flops / rate)


@functools.cache
def ceilings(threads=None, device="cpu"):
    """Bytes per second (read or written) of a copy, and flop per second of the fastest float32 product.

    On so many threads of a CPU a copy of 256 MiB, and the faster of torch's product of three sizes and fastmeta's, whose operands stay
    in the second cache: torch's alone is no ceiling, its library may leave the widest vectors unused. On a GPU a copy of 1 GiB and
    torch's product of 8192 x 8192.
    """
    elements, sizes, calls = (2**26, (512, 1024, 2048), 1) if device == "cpu" else (2**28, (8192,), 4)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        source, target = torch.ones(elements, device=device), torch.zeros(elements, device=device)
        products = [_product(n, device) for n in sizes]
        if device == "cpu":
            products += [_product_of_tasks(4 * torch.get_num_threads(), 256, n) for n in (128, 256)]
        bandwidth = 2 * source.nbytes / _fastest(lambda: target.copy_(source), calls)
        return bandwidth, max(flops / _fastest(fn, calls) for fn, flops in products)
    finally:
        torch.set_num_threads(before)


def _product(n, device):
    a, b, out = (torch.randn(n, n, device=device) for _ in range(3))
    return lambda: torch.mm(a, b, out=out), 2 * n**3


def _product_of_tasks(tasks, rows, n):
    """A layer without a bias."""
    params, x = [torch.randn(n, n), None], torch.randn(tasks, rows, n)

    def run():
        with fastmeta.backend("ext"):
            fastmeta.mlp_forward(params, x)

    return run, 2 * tasks * rows * n * n


def _fastest(fn, calls):
    return min(per_call(fn, calls) for _ in range(8))


@functools.cache
def cache(device):
    """Bytes of the largest cache."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((1024 * int(size.removesuffix("K")) for size in sizes), default=2**25)

"""The least time that bytes and flops take on this machine, by its measured copy bandwidth and rate of matrix products."""

import functools
from pathlib import Path

import torch

from measure.timing import per_call


def floor(size, flops, threads=None, device="cpu"):
    """Seconds for `size` bytes from and to memory and `flops` operations: whichever takes longer."""
    bandwidth, rate = rates(threads, device)
    return max(size / bandwidth, flops / rate)


@functools.cache
def rates(threads=None, device="cpu"):
    """Bytes per second (read or written) of a copy, and flop per second of a float32 product: of 256 MiB and the best of three sizes
    on so many threads of a CPU, of 1 GiB and 8192 x 8192 on a GPU."""
    elements, sizes, calls = (2**26, (512, 1024, 2048), 1) if device == "cpu" else (2**28, (8192,), 4)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        source, target = torch.ones(elements, device=device), torch.zeros(elements, device=device)
        return (
            2 * source.nbytes / _fastest(lambda: target.copy_(source), calls),
            max(2 * n**3 / _fastest(_product(n, device), calls) for n in sizes),
        )
    finally:
        torch.set_num_threads(before)


def _product(n, device):
    a, b, out = (torch.randn(n, n, device=device) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


@functools.cache
def cache(device):
    """Bytes of the largest cache."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((1024 * int(size.removesuffix("K")) for size in sizes), default=2**25)


def _fastest(fn, calls):
    return min(per_call(fn, calls) for _ in range(8))

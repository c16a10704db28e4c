"""The least time that bytes and flops take on this machine, by its measured copy bandwidth and rate of matrix products."""

import functools
import time

import torch


def floor(size, flops, threads):
    """Seconds for `size` bytes from and to memory and `flops` operations: whichever takes longer."""
    bandwidth, rate = rates(threads)
    return max(size / bandwidth, flops / rate)


@functools.cache
def rates(threads):
    """Bytes per second (read or written) of a copy of 256 MiB, and flop per second of a float32 product of 2048 x 2048."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        source, target = torch.ones(2**26), torch.zeros(2**26)
        a, b, out = torch.randn(2048, 2048), torch.randn(2048, 2048), torch.empty(2048, 2048)
        return (
            2 * source.nbytes / _fastest(lambda: target.copy_(source)),
            2 * 2048**3 / _fastest(lambda: torch.mm(a, b, out=out)),
        )
    finally:
        torch.set_num_threads(before)


def _fastest(fn):
    times = []
    for _ in range(8):
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return min(times)

"""Peak memory that proto_loss and its gradients take on top of their inputs, each way in a process of its own."""

import subprocess
import sys
from pathlib import Path

import distances
import pytest
import torch

import fastmeta

SHAPES = {  # T, Q, N, D: ways
    (1, 4096, 1000, 512): ("ext", "cdist", "mm"),
    (1, 256, 100_000, 64): ("ext", "mm"),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_memory(request, memory, shape):
    peaks = {}
    for name in SHAPES[shape][: 1 if request.config.getoption("benchmark_disable") else None]:
        command = [sys.executable, __file__, name, *map(str, shape)]
        peaks[name] = int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    memory("proto_loss fwd+bwd euclidean T{} Q{} N{} D{}".format(*shape), peaks)


def peak(name, shape):
    """KiB by which the resident set rises above what it is before the call."""
    _loss_and_gradients(name, *_draw(1, 4, 3, 2))
    inputs = _draw(*shape)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    _loss_and_gradients(name, *inputs)
    return _status("VmHWM") - before


def _draw(T, Q, N, D):
    query, prototypes = torch.randn(T, Q, D, requires_grad=True), torch.randn(T, N, D, requires_grad=True)
    return query, prototypes, torch.randint(0, N, (T, Q))


def _loss_and_gradients(name, query, prototypes, targets):
    if name == "ext":
        with fastmeta.backend("ext"):
            loss = fastmeta.proto_loss(query, prototypes, targets).mean()
    else:
        way = distances.eager_ways(1, 1, 1, 1)[name]
        loss = distances.loss(way, query, prototypes, targets, "euclidean", 1.0)
    return torch.autograd.grad(loss, (query, prototypes))


def _status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    print(peak(sys.argv[1], tuple(map(int, sys.argv[2:]))))

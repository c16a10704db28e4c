"""What a busy process beside it costs a call: `make neighbour`, two minutes. The table of docs/performance.md is what it prints.

Each call runs for some seconds on an idle machine and beside one process that never sleeps, on two threads. On two cores with one such
process a fair share is two thirds of the idle speed; a call on one thread alone keeps half of it.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable

import torch

import fastmeta

SECONDS = 4.0


def sinusoid() -> Callable[[], None]:
    shapes = ((40, 1), (40,), (40, 40), (40,), (1, 40), (1,))
    params = [(torch.randn(shape) / 6).requires_grad_() for shape in shapes]
    data = [torch.randn(25, 10, 1) for _ in range(4)]
    return lambda: fastmeta.mlp_meta_loss(params, 0.01, *data, steps=5, loss="mse").mean().backward()


def distances() -> Callable[[], None]:
    query, prototypes = torch.randn(32, 75, 640, requires_grad=True), torch.randn(32, 5, 640, requires_grad=True)
    targets = torch.randint(0, 5, (32, 75))

    def call() -> None:
        query.grad = prototypes.grad = None
        fastmeta.proto_loss(query, prototypes, targets).mean().backward()

    return call


def conv4() -> Callable[[], None]:
    params = []
    for channels in (1, 32, 32, 32):
        params += [
            torch.randn(32, channels, 3, 3) / (9 * channels) ** 0.5,
            torch.zeros(32),
            torch.ones(32),
            torch.zeros(32),
        ]
    params = [p.requires_grad_() for p in (*params, torch.randn(5, 32) / 6, torch.zeros(5))]
    support, query = torch.randn(8, 5, 1, 28, 28), torch.randn(8, 15, 1, 28, 28)
    labels, targets = torch.arange(5).expand(8, 5), torch.randint(0, 5, (8, 15))
    blocks = [fastmeta.ConvBlock()] * 4
    return lambda: (
        fastmeta.conv_meta_loss(params, 0.1, support, labels, query, targets, blocks=blocks, steps=1).mean().backward()
    )


def seconds_of(call: Callable[[], None]) -> float:
    """The mean: what a training waits for."""
    end, times = time.perf_counter() + SECONDS, []
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.fmean(times)


def busy() -> None:
    while True:
        pass


def main() -> None:
    torch.set_num_threads(2)
    print("| call | idle | beside a busy process | share of the idle speed |\n| --- | --- | --- | --- |")
    for name, make in (
        ("`mlp_meta_loss`, sinusoid MAML, K = 5", sinusoid),
        ("`proto_loss`, 32 tasks, D = 640", distances),
        ("`conv_meta_loss`, Conv4-32, 8 tasks", conv4),
    ):
        call = make()
        for _ in range(20):
            call()
        idle = seconds_of(call)
        neighbour = multiprocessing.Process(target=busy, daemon=True)
        neighbour.start()
        beside = seconds_of(call)
        neighbour.kill()
        neighbour.join()
        print(f"| {name} | {1e3 * idle:.3g} ms | {1e3 * beside:.3g} ms | {idle / beside:.2f} |", flush=True)


if __name__ == "__main__":
    main()

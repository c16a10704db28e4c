import torch

import fastmeta

params, grads, out = (torch.zeros(300_000) for _ in range(3))  # the same memory for both contenders


def bench_alternating_with_torch(race):
    """A native op and a torch op in turn (ext) against each on its own, added (reference): one pool of threads serves both,
    so that the ratio stays near 1; with two OpenMP runtimes it falls to a hundredth."""

    def alternating():
        for _ in range(4):
            fastmeta.sgd_step(params, grads, 0.1)
            torch.add(params, grads, out=out)

    def apart():
        for _ in range(4):
            fastmeta.sgd_step(params, grads, 0.1)
        for _ in range(4):
            torch.add(params, grads, out=out)

    race("threads: alternating (ext), one after the other (reference)", {"ext": alternating, "reference": apart})

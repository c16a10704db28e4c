"""The host's time for a call on a GPU, without a GPU: kernels are launched by a driver that runs none of them."""

import json
import statistics
import subprocess
import sys
import time

import pytest
import torch

from emulator import stub_driver
from harness.places import WITH_TOOLS

TITLE = "host time of a GPU call, us of processor time (a driver that runs nothing)"
ROUNDS, CALLS = 15, 200
LAUNCHES = {
    "proto_loss forward + backward": 2,
    "proto_loss forward": 1,
    "proto_loss value_and_grad": 2,
    "sgd_step of a Conv4's list, forward": 1,
    "sgd_step of a Conv4's list, forward + backward": 2,
}  # of ours in each call
NATIVE = {
    "mlp_meta_loss forward + backward": 2,
    "mlp_meta_loss forward": 1,
    "mlp_meta_loss value_and_grad": 2,
}  # where fastmeta._C was built with CUDA


@pytest.mark.parametrize("backend", ["triton", "ext"])
def bench_launch(request, table, backend):
    if reason := stub_driver.why_not():
        pytest.skip(reason)
    if backend == "ext" and not stub_driver.linked():
        pytest.skip("needs the extension with CUDA (FASTMETA_BUILD=cuda)")
    rounds = 1 if request.config.getoption("benchmark_disable") else ROUNDS
    command = [sys.executable, __file__, backend, str(rounds)]
    found = subprocess.run(command, env=WITH_TOOLS, stdout=subprocess.PIPE, text=True, check=True).stdout
    for call, number in json.loads(found).items():
        table(TITLE, call, {"fastmeta": number})


def calls():
    """Each of LAUNCHES as a function. The list is a Conv4's, narrow: sizes cost the host nothing."""
    import fastmeta

    query, centres = torch.randn(32, 75, 64, requires_grad=True), torch.randn(32, 5, 64, requires_grad=True)
    targets, cotangent = torch.randint(0, 5, (32, 75)), torch.ones(32)
    shapes = [s for i in (3, 8, 8, 8) for s in ((8, i, 3, 3), (8,), (8,), (8,))] + [(5, 32), (5,)]
    params, grads = ([torch.randn(4, *s, requires_grad=True) for s in shapes] for _ in range(2))
    cotangents = [torch.ones_like(p) for p in params]
    value_and_grad = fastmeta.value_and_grad(fastmeta.proto_loss, argnums=(0, 1))
    plain = [x.detach() for x in (query, centres)]

    def loss():
        return fastmeta.proto_loss(query, centres, targets)

    def step():
        return fastmeta.sgd_step(params, grads, 0.1)

    functions = (
        lambda: torch.autograd.grad(loss(), (query, centres), cotangent),
        torch.no_grad()(loss),
        lambda: value_and_grad(*plain, targets),
        torch.no_grad()(step),
        lambda: torch.autograd.grad(step(), params + grads, cotangents),
    )
    return dict(zip(LAUNCHES, functions, strict=True))


def native_calls():
    """Each of NATIVE as a function: sinusoid MAML, 25 tasks of 10 + 10 examples, one step."""
    import fastmeta

    shapes = [s for i, o in ((1, 40), (40, 40), (40, 1)) for s in ((o, i), (o,))]
    params, data = [torch.randn(s, requires_grad=True) for s in shapes], torch.randn(4, 25, 10, 1).unbind()
    cotangent, plain = torch.ones(25), [p.detach() for p in params]

    def loss(op=fastmeta.mlp_meta_loss, params=params):
        return op(params, 0.01, *data, steps=1, loss="mse")

    value_and_grad = fastmeta.value_and_grad(fastmeta.mlp_meta_loss)
    functions = (
        lambda: torch.autograd.grad(loss(), params, cotangent),
        torch.no_grad()(loss),
        lambda: loss(value_and_grad, plain),
    )
    return dict(zip(NATIVE, functions, strict=True))


def microseconds(fn, rounds):
    """Of the process's time for one call, the median of rounds: what else the machine does counts less."""
    found = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(CALLS):
            fn()
        found.append(1e6 * (time.process_time() - start) / CALLS)
    return statistics.median(found)


def main(backend, rounds):
    stub = stub_driver.install(extension=backend == "ext")
    import fastmeta

    torch.set_num_threads(1)
    found = {}
    with fastmeta.backend(backend):
        for call, fn in (native_calls if backend == "ext" else calls)().items():
            for _ in range(3):  # compiled, recorded, replayed
                before = stub.launches()
                fn()
            assert stub.launches() - before == (LAUNCHES | NATIVE)[call]
            found[call] = microseconds(fn, int(rounds))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

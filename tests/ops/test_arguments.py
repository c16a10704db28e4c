"""Every op with every wrong argument: an error that says what must hold, and then the op still works."""

import re

import numpy as np
import pytest
import torch

import fastmeta
from fastmeta import _dispatch, _route
from harness import forks
from harness.argument_cases import arguments, call, wrong
from harness.cases import OPS

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("backend", ["auto", "reference"], indirect=True)
@pytest.mark.parametrize("op", OPS)
def test_wrong_types_and_values(op, backend):
    right = arguments(op)
    expected = call(op, right)
    refused = 0
    for name in right:
        for value in wrong():
            try:
                call(op, right | {name: value})
            except (TypeError, ValueError, RuntimeError) as error:
                refused += 1
                said = str(error)
                assert re.match(rf"{op}: .*must .*, got ", said, re.S), (name, value, said)
                assert "incompatible function arguments" not in said and len(said) < 1000, (name, said)
    assert refused > 30 * len(right)
    torch.testing.assert_close(call(op, right), expected)


@pytest.mark.parametrize(
    ("op", "name"), [("prototypes", "num_classes"), ("proto_loss", "ignore_index"), ("mlp_adapt", "steps")]
)
def test_while_compiling(op, name):
    """The graph's node gets static arguments that were checked too."""
    torch._dynamo.reset()
    right = arguments(op)
    fn = torch.compile(lambda value: call(op, right | {name: value}), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=f"{op}: {name} must be an integer, got float"):
        fn(float(right[name]))
    torch.testing.assert_close(fn(right[name]), call(op, right))


def test_numbers_of_numpy():
    x, y, c = torch.randn(4, 3), torch.tensor([0, 1, 0, 1]), torch.randn(2, 3)
    assert torch.equal(fastmeta.prototypes(x, y, np.int32(2)), fastmeta.prototypes(x, y, 2))
    assert torch.equal(fastmeta.prototypes(x, y, y.max() + 1), fastmeta.prototypes(x, y, 2))
    loss = fastmeta.proto_loss(x, c, y, ignore_index=np.int64(-1), temperature=np.float32(2), metric=np.str_("cosine"))
    assert torch.equal(loss, fastmeta.proto_loss(x, c, y, ignore_index=-1, temperature=2, metric="cosine"))
    adapted = fastmeta.mlp_adapt([c, None], np.float32(0.5), x, y, steps=np.uint8(2), first_order=np.bool_(True))
    assert torch.equal(adapted[0], fastmeta.mlp_adapt([c, None], 0.5, x, y, steps=2, first_order=1)[0])
    assert torch.equal(fastmeta.sgd_step(x, x, np.float64(0.5)), x - 0.5 * x)


def test_caches_are_bounded():
    x, y = torch.randn(1, 3), torch.zeros(1, dtype=torch.int64)
    for index in range(-3000, -500):
        fastmeta.proto_loss(x, x, y, ignore_index=index)
    for cached in (_dispatch.op_on, _route._native, _dispatch._candidates, _dispatch.unavailable):
        info = cached.cache_info()
        assert info.maxsize is not None and info.currsize <= info.maxsize <= 1024


def test_sizes_that_cannot_be():
    x, y, few = (
        torch.randn(4, 3),
        torch.tensor([0, 1, 0, 1]),
        "every class must have a support example, got none of class 2 in task 0",
    )
    for classes in (5, 2**20, 2**31 - 1):
        for args in ((fastmeta.prototypes, x, y), (fastmeta.matching_log_probs, x, x, y)):
            with pytest.raises(ValueError, match=few):
                args[0](*args[1:], classes)
        with pytest.raises(ValueError, match=rf"every class must have .*, got {classes} classes and 4 examples"):
            torch.vmap(lambda s, n=classes: fastmeta.prototypes(s, y, n))(x.expand(2, 4, 3))
    for classes in (2**31, 2**70):
        with pytest.raises(ValueError, match="prototypes: num_classes must be at most 2147483647, got "):
            fastmeta.prototypes(x, y, classes)
    for steps, said in ((10**10, "10000000000"), (10**400, "an integer of 1329 bits")):
        with pytest.raises(ValueError, match=f"mlp_adapt: steps must be at most 1000000, got {said}"):
            fastmeta.mlp_adapt([torch.ones(2, 3), None], 0.1, x, y, steps=steps)


def test_memory_that_is_not_there():
    """On a worker's thread too it is an error, not the end of the process."""
    code = (
        "import resource, torch, fastmeta\n"
        "torch.set_num_threads(2)\n"
        "x, y = torch.ones(8, 1, 300), torch.zeros(8, 1, dtype=torch.int64)\n"
        "params = [torch.ones(10, 300, requires_grad=True), None, torch.ones(10, 10), None]\n"
        "def loss(steps): return fastmeta.mlp_meta_loss(params, 0.1, x, y, x, y, steps=steps, activation='tanh')\n"
        "loss(1)\n"
        "used = 1024 * int(next(line for line in open('/proc/self/status') if line.startswith('VmSize')).split()[1])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))\n"
        "try: loss(100_000)\n"
        "except MemoryError as error: print(error)\n"
        "loss(1)\n"
    )
    done = forks.run("-c", code)
    assert done.returncode == 0, done.stderr
    assert re.match("fastmeta: what a call keeps must fit into memory, got .* bytes on a thread", done.stdout)


def test_backend():
    for bad in (None, 3, "cuda", ["ext"], np.ones(2), torch.ones(2)):
        with pytest.raises(ValueError, match="fastmeta: backend must be one of .*, got "), fastmeta.backend(bad):
            pass
    fastmeta.prototypes(torch.ones(1, 2), torch.tensor([0]), 1)

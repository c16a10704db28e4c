"""fastmeta.graphed and fit(graph=True): on a CPU the loop of `fit`, and on stand-ins for CUDA's graphs what is captured and replayed."""

import copy
import os
import sys

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastmeta
from fastmeta import meta_iteration
from harness import recorded_graph
from harness.learner_cases import ALL, LEARNERS, N, data_of, encoder, made, mlp

pytestmark = pytest.mark.cpu


def batches(name, count, seed=0):
    torch.manual_seed(seed)
    return [data_of(name) for _ in range(count)]


def optimiser_of(learner, kind="Adam"):
    if kind == "Adam":
        return fastmeta.optim.Adam(learner.parameters(), 0.01)
    options = {"momentum": 0.9} if kind == "SGD" else {"capturable": True}
    return getattr(torch.optim, kind)(learner.parameters(), 0.01, **options)


@pytest.fixture
def log(monkeypatch):
    """What is asked of torch.cuda, whose graphs are recorded on CPU tensors."""
    found = []
    for name, standin in recorded_graph.standins(found).items():
        monkeypatch.setattr(torch.cuda, name, standin)
    monkeypatch.setattr(meta_iteration, "_is_on_cuda", lambda learner: True)
    return found


def both_ways(name, steps, kind="Adam"):
    """The losses and the parameters after them, of `fit` and of `graphed`."""
    plain, data = made(name), batches(name, steps)
    of_graph = copy.deepcopy(plain)
    expected = [fastmeta.fit(plain, data, steps, optimiser=optimiser_of(plain, kind)), *plain.parameters()]
    step = fastmeta.graphed(of_graph, optimiser_of(of_graph, kind), data)
    losses = []
    for _ in data:
        step()
        assert step.losses.shape == (2,) and not step.loss.requires_grad
        losses.append(step.loss)
    return expected, [torch.stack(losses), *of_graph.parameters()]


@pytest.mark.parametrize("name", LEARNERS)
def test_on_a_cpu_it_is_fit(name):
    expected, found = both_ways(name, 3)
    assert all(map(torch.equal, expected, found))


@pytest.mark.parametrize("name", ALL)
def test_replays_are_fit(log, name):
    """No number goes through Python from one step to the next: three steps are eager, three are replayed."""
    torch.testing.assert_close(*both_ways(name, 6), rtol=1e-9, atol=1e-9)
    assert log.count("replay") == 3


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "RMSprop"])
def test_replays_of_torchs_optimisers(log, kind, monkeypatch):
    for module in ("torch.optim.adam", "torch.optim.rmsprop"):  # which refuse capturable=True on a CPU
        monkeypatch.setattr(sys.modules[module], "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])
    torch.testing.assert_close(*both_ways("MAML", 6, kind), rtol=1e-9, atol=1e-9)


def test_warm_up_capture_replay(log):
    """In this order; the meta-batch always lies in the same memory."""
    learner, data = made("ProtoNet"), batches("ProtoNet", 6)
    learner.generator = torch.Generator()
    places, backward = [], learner.backward
    learner.backward = lambda *batch: places.append([x.data_ptr() for x in batch]) or backward(*batch)
    seen = []
    losses = fastmeta.fit(learner, data, 6, graph=True, callbacks=[lambda step, losses: seen.append(losses)])
    warm = ["side waits for current", "on side", "current waits for side"]
    captured = ["a generator of a module's own", "on side", "capture on side"]
    assert log == [*warm * 3, *captured, *["replay"] * 3]
    assert len(places) == 4 and all(place == places[0] for place in places)
    assert not {x.data_ptr() for batch in data for x in batch} & set(places[0])
    torch.testing.assert_close(torch.stack(seen).mean(1), losses)  # none was written over


def test_a_rate_on_the_device_may_change(log):
    learner, data = made("MAML"), batches("MAML", 7)
    optimiser = torch.optim.SGD(learner.parameters(), torch.tensor(0.01), fused=True)
    step = fastmeta.graphed(learner, optimiser, data)
    for _ in range(5):
        step()
    optimiser.param_groups[0]["lr"].zero_()
    before = copy.deepcopy(learner)
    step()
    assert all(map(torch.equal, before.parameters(), learner.parameters()))
    optimiser.param_groups[0]["lr"] = 0.1
    with pytest.raises(RuntimeError, match="^graphed: the learner's mode and the optimiser's options must stay"):
        step()


def run(learner, optimiser=None, data=None):
    step = fastmeta.graphed(learner, optimiser or optimiser_of(learner), data or batches("MAML", 6))
    for _ in range(6):
        step()


def other_shapes():
    return [*batches("MAML", 4), [x[:1] for x in batches("MAML", 1)[0]]]


def rated(learner, rate):
    optimiser = optimiser_of(learner)
    optimiser.param_groups[0]["lr"] = rate
    return optimiser


class Asks(nn.Module):
    def forward(self, y):
        return y * max(y.sum().item(), 1.0)


def protonet(*more):
    return fastmeta.ProtoNet(nn.Sequential(encoder(), *more), num_classes=N).double()


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (lambda: fastmeta.graphed(nn.Linear(1, 1), None, []), "learner must be a learner of fastmeta"),
        (lambda: fastmeta.graphed(made("MAML"), None, []), "optimiser must be one of torch.optim's kind, got NoneType"),
        (
            lambda: run(learner := protonet(), torch.optim.Adam(learner.parameters())),
            "optimiser must be made with capturable=True, got Adam without",
        ),
        (
            lambda: run(learner := protonet(), torch.optim.LBFGS(learner.parameters())),
            "optimiser must be made with capturable=True, got LBFGS without",
        ),
        (
            lambda: run(learner := protonet(), rated(learner, torch.empty((), device="meta"))),
            "optimiser's rate must be a number or on the device, got a tensor on meta",
        ),
        (
            lambda: run(made("MAML"), data=other_shapes()),
            r"sampler must give meta-batches like the first, \[\(\[2, 4, 3\]",
        ),
        (lambda: run(made("MAML"), data=batches("MAML", 5)), "sampler must give a meta-batch for every step, got 5"),
        (lambda: run(protonet(nn.Dropout())), "random numbers must be drawn on the device"),
        (lambda: run(protonet(Asks())), "a meta-iteration must go into a CUDA graph.* got operation not permitted"),
    ],
)
def test_what_cannot_be_captured_is_refused(log, start, words):
    with pytest.raises((TypeError, ValueError, RuntimeError), match=f"^graphed: {words}"):
        start()
    assert torch.cuda.default_generators[0].state == "free"


def test_random_numbers_on_the_device(log, monkeypatch):
    """Outside an inner loop they go into the graph; inside, the way back would have to draw them again."""
    states = iter(torch.arange(1000, dtype=torch.uint8))
    monkeypatch.setattr(meta_iteration, "noise_of", lambda like: (torch.zeros(1), like.device, next(states)))
    run(protonet())
    with pytest.raises(
        RuntimeError, match="^graphed: a model inside an inner loop must draw no random numbers, .* in MAML"
    ):
        run(fastmeta.MAML(mlp(), 0.1, 1).double())


@pytest.fixture
def wrapped(monkeypatch):
    """DistributedDataParallel without processes."""
    around = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(around)
    around.module, around.process_group = protonet(), "the group"
    monkeypatch.setattr(DistributedDataParallel, "forward", lambda self, *batch: self.module(*batch))
    return around


@pytest.mark.parametrize(
    ("backend", "version", "handling", "words"),
    [
        ("gloo", (2, 27, 0), "0", "gradients must be averaged over NCCL, whose kernels go into a graph, got gloo"),
        (
            "nccl",
            (2, 8, 0),
            "0",
            r"NCCL must be at least \(2, 9, 6\), whose all-reduce goes into a graph, got \(2, 8, 0\)",
        ),
        ("nccl", (2, 27, 0), "1", "TORCH_NCCL_ASYNC_ERROR_HANDLING must be 0 before init_process_group"),
        ("nccl", (2, 27, 0), "0", None),
    ],
)
def test_distributed_data_parallel(log, monkeypatch, wrapped, backend, version, handling, words):
    monkeypatch.setattr(torch.distributed, "get_backend", lambda group: backend)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: version)
    monkeypatch.setitem(os.environ, "TORCH_NCCL_ASYNC_ERROR_HANDLING", handling)
    start = lambda: fastmeta.fit(wrapped, batches("MAML", 13), 13, graph=True)  # noqa: E731
    if words:
        with pytest.raises(RuntimeError, match=f"^fit: {words}"):
            start()
        return
    start()
    assert log.count("current waits for side") == 11 and log.count("replay") == 2

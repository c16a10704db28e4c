"""One number of one argument becomes NaN or infinite: the native CPU kernels' values and gradients are finite where plain PyTorch's
are, and NaN where a NaN makes them so."""

import pytest
import torch
from torch.func import functional_call

import fastmeta
from fastmeta import _C
from fastmeta._dispatch import tensors_of
from harness.compare import values_and_grads
from harness.conv_networks import Losses, episode, network
from harness.nan_cases import (
    ACTIVATIONS,
    ARGUMENTS,
    LABELS,
    NAN,
    Case,
    D,
    distance_case,
    loss_of,
    mlp_case,
    prototypes_case,
    sgd_step_case,
)


@pytest.fixture(autouse=True)
def _same_instruction_set():
    before = _C.isa()
    yield
    _C.set_isa(before)


def check(case: Case, values=(NAN, torch.inf, -torch.inf), dtypes=(torch.float32, D)) -> None:
    ordinary = [*case.tensors, *case.fixed]
    outputs = tensors_of(case.plain(*(t.clone().requires_grad_() for t in ordinary)))
    cotangents = [1 + torch.arange(y.numel(), dtype=D).view(y.shape) % 2 for y in outputs]

    def results(fn, tensors):
        return tensors_of(fn(*tensors)) if case.values_only else values_and_grads(fn, tensors, cotangents)

    for which, tensor in enumerate(case.tensors):
        for place in {0, tensor.numel() * 2 // 3}:
            for value in values:
                spoiled = [t.clone() for t in ordinary]
                spoiled[which].view(-1)[place] = value
                expected = results(case.plain, spoiled)
                for isa, dtype in ((isa, dtype) for isa in _C.isas() for dtype in dtypes):
                    _C.set_isa(isa)
                    with fastmeta.backend("ext"):
                        found = results(case.ours, [t.to(dtype) for t in spoiled])
                    for i, (ours, plain) in enumerate(zip(found, expected, strict=True)):
                        where = f"{value} at {place} of argument {which}, result {i}, {isa}, {dtype}"
                        assert torch.equal(ours.isfinite(), plain.isfinite()), where
                        assert value == value or torch.equal(ours.isnan(), plain.isnan()), where


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("op", ARGUMENTS)
def test_mlp_ops(op, activation, loss):
    finite_derivatives = activation != "gelu"  # torch's at the infinities depend on the width of its vectors
    check(mlp_case(op, activation, loss), (NAN, torch.inf, -torch.inf) if finite_derivatives else (NAN,))


DISTANCES = ("proto_log_softmax", "proto_loss", "matching_log_probs")


@pytest.mark.parametrize("case", [prototypes_case, sgd_step_case])
def test_elementwise_ops(case):
    check(case())


@pytest.mark.parametrize("sizes", [(3, 4), (17, 12)], ids=["few", "many"])
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("op", DISTANCES)
def test_distance_ops(op, metric, sizes):
    check(distance_case(op, metric, *sizes))


CONV_NETS = {
    "batch norm": {"norm": True},
    "batch norm without gamma": {"norm": True, "affine": False, "blocks": 1},
    "group norm": {"norm": 4, "blocks": 1},
    "no norm": {"norm": False},
    "no norm, no relu": {"norm": False, "relu": False, "blocks": 1},
    "no norm, no pool": {"norm": False, "pool": False, "blocks": 1, "size": 5},
    "padded channels": {"norm": False, "channels": 3},
}


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("kind", CONV_NETS)
def test_convolutional_networks(kind, first_order):
    """A bias before batch norm, windows, pixels that no window has. No instruction set pads 8 channels of float64; with padding,
    infinite pixels give more NaN (conv_layout.h)."""
    options = {"blocks": 2, "channels": 8, "size": 9} | CONV_NETS[kind]
    model = network(**options)
    names = [name for name, _ in model.named_parameters()]
    data = episode(model, options["size"], tasks=2, shots=4, queries=4)
    data[1], data[3] = LABELS, LABELS.flip(1)
    rates = [torch.full_like(p, 0.1) for p in model.parameters()]
    losses = Losses(fastmeta.MetaSGD(model, 0.1, 1, first_order=first_order), data)

    def ours(*tensors):
        losses.data = [tensors[-2].detach(), data[1], tensors[-1].detach(), data[3]]
        return losses.at(*tensors[:-2], *rates)

    def loss(params, x, y):
        return loss_of(functional_call(model, dict(zip(names, params, strict=True)), (x,)), y)

    def plain(*tensors):
        found = []
        for x, y, query_x, query_y in zip(tensors[-2].detach(), data[1], tensors[-1].detach(), data[3], strict=True):
            grads = torch.autograd.grad(loss(tensors[:-2], x, y), tensors[:-2], create_graph=not first_order)
            adapted = [p - 0.1 * g for p, g in zip(tensors[:-2], grads, strict=True)]
            found.append(loss(adapted, query_x, query_y))
        return torch.stack(found)

    values = (NAN,) if kind == "padded channels" else (NAN, torch.inf, -torch.inf)
    check(Case(ours, plain, [*(p.detach() for p in model.parameters()), data[0], data[2]]), values, (D,))


@pytest.mark.parametrize("isa", _C.isas())
@pytest.mark.parametrize("wrong", [5, -1, 2**40, -(2**62)])
@pytest.mark.parametrize("which", ["support", "query"])
def test_the_convolutional_kernel_reads_no_place_that_a_wrong_label_names(which, wrong, isa):
    """The learners refuse such labels; the kernel, past them: NaN in the loss and all gradients of the task, no other's."""
    _C.set_isa(isa)
    model = network(1, 4, 6, norm=False)
    data = episode(model, 6, tasks=2)
    data[1 if which == "support" else 3][1, 2] = wrong
    net = fastmeta.MAML(model)._plan().network
    rates = [torch.tensor(0.1, dtype=D)]
    of_tasks = [p if p is None else p.detach().expand(2, *p.shape) for p in net.params]
    needs = (*(p is not None for p in of_tasks), True, False, False, False, False)
    call = (of_tasks, rates, *data, 2, net.blocks, "cross_entropy", False, needs)
    (losses,), saved = _C.conv_meta_loss_fwd(*call)
    of_rates, *grads = saved  # what is summed over the tasks comes first
    for result in (losses, of_rates, *grads):
        assert result[0].isfinite().all() and result[1].isnan().any()
    assert losses[1].isnan() and all(g[1].isnan().all() for g in (*grads[-2:], of_rates))


EXTREMES = {
    "one far": lambda q, c: (q, c * torch.tensor([1e20] + [1.0] * (len(c) - 1)).unsqueeze(1)),
    "an offset": lambda q, c: (q * 1e17 + 1e20, c * 1e17 + 1e20),
    "largest": lambda q, c: (torch.full_like(q, 1.6e38), torch.full_like(c, 1.6e38)),
    "small": lambda q, c: (q * 1e-30, c * 1e-30),
    "denormal": lambda q, c: (q * 1e-44, c * 1e-44),
    "zero": lambda q, c: (q * 0, c * 0),
    "coincident": lambda q, c: (c[torch.arange(len(q)) % len(c)], c),
}


@pytest.mark.parametrize("isa", _C.isas())
@pytest.mark.parametrize("sizes", [(3, 4), (17, 12)], ids=["few", "many"])
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("op", DISTANCES)
def test_distances_at_the_ends_of_float32(op, metric, sizes, isa):
    """As the reference in float32, whose squares overflow and vanish in the same places; its gradients overflow at small
    temperatures."""
    _C.set_isa(isa)
    case = distance_case(op, metric, *sizes)
    for kind, change in EXTREMES.items():
        for temperature in (0.7, 1e-40, 1e38) if kind == "coincident" and metric != "cosine" else (0.7,):
            pairs = [change(q, c) for q, c in zip(*(t.float() for t in case.tensors), strict=True)]
            tensors = [*map(torch.stack, zip(*pairs, strict=True)), torch.tensor(temperature)]
            with fastmeta.backend("ext"):
                ours = values_and_grads(case.ours, tensors)
            plain = values_and_grads(case.plain, tensors)
            for i, (x, y) in enumerate(list(zip(ours, plain, strict=True))[: 1 if temperature < 1e-30 else None]):
                where = f"{kind}, temperature {temperature}, result {i}: {x} for {y}"
                x, y = x.clamp(min=-1e37), y.clamp(min=-1e37)  # which of the last numbers becomes -inf is open
                torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4, equal_nan=True, msg=where)

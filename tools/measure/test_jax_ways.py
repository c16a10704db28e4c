"""The ways in JAX against plain PyTorch, where it is installed; the loop of whole meta-iterations."""

import importlib.util
import math
from functools import partial

import pytest
import torch

from measure import distances, inner_loops, jax_iterations, jax_ways, meta_iterations, peers
from measure.contenders import conv4, cotangent
from measure.timing import disagreement

pytestmark = pytest.mark.cpu
needs_jax = pytest.mark.skipif(not jax_ways.installed(), reason="jax is not installed")
SMALL = inner_loops.Workload((3, 5, 4, 2), tasks=3, support=4, query=6, steps=2)


@needs_jax
@pytest.mark.parametrize("metric", distances.METRICS)
def test_proto_loss(metric):
    leaves = [torch.randn(2, rows, 4, requires_grad=True) for rows in (6, 3)]
    targets = torch.randint(0, 3, (2, 6))
    ways = jax_ways.of_proto_loss(leaves, targets, metric, 2.0, naive=True)
    value = distances.loss(distances.by_naive, *leaves, metric, 2.0, targets)
    gradients = torch.autograd.grad(value, leaves, cotangent((), torch.float32, torch.device("cpu")))
    assert set(ways) == {"jax mm", "jax naive"}
    for way in ways.values():
        assert disagreement(way.results(), (value.detach(), *gradients)) is None


@needs_jax
@pytest.mark.parametrize(
    "options", [{}, {"rate_per_parameter": True}, {"loss": "cross_entropy", "inputs_need_grad": True}], ids=str
)
def test_meta_iterations_of_mlps(options):
    workload = SMALL._replace(**options)
    arguments = inner_loops.arguments(workload)
    expected = inner_loops.eager(partial(inner_loops.by_autograd, **workload.options), arguments)()
    assert disagreement(jax_ways.of_mlp(arguments, **workload.options)["jax"].results(), expected) is None


@needs_jax
@pytest.mark.parametrize("convolve", [jax_ways.by_lax, jax_ways.by_patches])
def test_conv4(convolve):
    (params, images, _), width = conv4(4, 1, 3), 4
    of_blocks = [p for i, p in enumerate(params[:16]) if i % 4 != 1]  # without the convolutions' biases
    x = images[0]
    for i in range(4):
        weight, scale, shift = of_blocks[3 * i : 3 * i + 3]
        x = torch.nn.functional.conv2d(x, weight, padding=1)
        x = torch.nn.functional.batch_norm(x, None, None, scale, shift, training=True)
        x = torch.nn.functional.max_pool2d(x.relu(), 2)
    found = jax_ways.conv4(convolve, jax_ways.arrays(of_blocks), jax_ways.arrays(images[0]))
    assert disagreement(jax_ways.as_tensors(found), [x.detach().view(3, width)]) is None


@needs_jax
def test_adam_is_torchs():
    params = [torch.randn(3, requires_grad=True)]
    optimiser = torch.optim.Adam(params, 0.1)
    means, squares, ours = [0.0], [0.0], jax_ways.arrays(params)
    for count in range(1, 4):
        params[0].grad = torch.randn(3)
        optimiser.step()
        gradients = jax_ways.arrays([params[0].grad])
        ours, means, squares = jax_iterations.adam(0.1, ours, gradients, means, squares, count)
    assert disagreement(jax_ways.as_tensors(ours), [p.detach() for p in params]) is None


@needs_jax
def test_jax_draws_the_same_kind_of_tasks():
    jax = pytest.importorskip("jax")
    key = jax.random.key(0)
    images = torch.randint(0, 256, (7, 8, 3), dtype=torch.uint8)
    problem = meta_iterations.glyphs(images, tasks=2, lr=1e-3, chunk=2)
    for found, alike in (
        (jax_iterations.sinusoids(25)(key), meta_iterations.sinusoids().batch()),
        (jax_iterations.glyphs(2)(key, jax_ways.arrays(images)), problem.batch()),
    ):
        assert [list(z.shape) for z in found] == [list(z.shape) for z in alike]
    for labels, alike in zip(found[1::2], problem.batch()[1::2], strict=True):
        assert labels.tolist() == alike.tolist()
    support_x, _, query_x, _ = found
    known = {tuple(image) for image in (images.flatten(0, 1).float() / 255).tolist()}
    assert len(known) == 56
    shown = torch.cat(jax_ways.as_tensors([support_x, query_x]), 1).flatten(0, 1)
    near = (shown[:, None] - torch.tensor(sorted(known))).abs().amax(-1).amin(-1)
    assert near.max() < 1e-6


def test_sinusoids_are_those_of_the_paper():
    support_x, support_y, query_x, query_y = meta_iterations.sinusoids(tasks=50).batch()
    assert support_x.shape == (50, 10, 1) and query_x.abs().max() <= 5
    assert torch.cat([support_y, query_y], 1).abs().max() <= 5 < 2 * math.pi


def test_a_training_is_checked_on_its_first_parameters():
    problem = meta_iterations.sinusoids(tasks=2)
    weight = torch.ones(1, requires_grad=True)

    def loss(*tasks):
        return (weight * tasks[0] - tasks[1]).square().mean()

    training = meta_iterations.by_autograd(loss, [weight], problem, problem.batch())
    before = [x.clone() for x in training.results()]
    assert not training.trained()
    for _ in range(3):
        training()
    assert training.trained()
    assert all(torch.equal(a, b) for a, b in zip(before, training.results(), strict=True)) and not training.trained()


def test_without_jax_there_are_no_ways(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    arguments = inner_loops.arguments(SMALL)
    leaves, targets = [torch.randn(rows, 4) for rows in (6, 3)], torch.randint(0, 3, (6,))
    assert (
        jax_ways.of_mlp(arguments, **SMALL.options)
        == {}
        == jax_ways.of_proto_loss(leaves, targets, "euclidean", 1.0, True)
    )
    assert jax_ways.of_conv4(arguments, 1) == {} == jax_ways.of_protonet(leaves, arguments[2:], 1.0, 3)
    assert peers.missing()["jax"] == "No module named 'jax'"

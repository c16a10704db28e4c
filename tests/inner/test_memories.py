"""The inner networks of titans-pytorch and COIN++ by fastmeta's ops: the same numbers, and the same outer gradients."""

import pytest
import torch

from harness.compare import values_and_grads
from harness.conv_cases import both
from harness.installed_peers import peer
from measure.memories import coin_by_op, coin_by_vmap, titans_by_op, titans_by_vmap

D = torch.float64
T, N, WIDTH = 3, 4, 8


def memory():
    """Weights of two layers, keys, values, rates."""
    weights = [torch.randn(T, WIDTH, 2 * WIDTH, dtype=D) / 3, torch.randn(T, 2 * WIDTH, WIDTH, dtype=D) / 3]
    return [*weights, torch.randn(T, N, WIDTH, dtype=D), torch.randn(T, N, WIDTH, dtype=D), torch.rand(T, N, dtype=D)]


def block():
    """A memory as a residual block."""
    return [*memory(), torch.randn(T, WIDTH, dtype=D)]


def titans(way):
    return lambda *t: way(t[:2], *t[2:])


def coin(way):
    return lambda *t: way(t[:-3], *t[-3:], 5.0)


def images():
    """A network of two sine layers, places, images, rates of three steps."""
    shapes = ((WIDTH, 2), (WIDTH,), (WIDTH, WIDTH), (WIDTH,), (1, WIDTH), (1,))
    params = [torch.randn(shape, dtype=D) / 3 for shape in shapes]
    return [*params, torch.randn(9, 2, dtype=D), torch.randn(T, 9, 1, dtype=D), 0.1 * torch.rand(3, dtype=D)]


@pytest.mark.parametrize(
    ("ours", "theirs", "tensors"),
    [
        (titans(titans_by_op), titans(titans_by_vmap), memory),
        (titans(titans_by_op), titans(titans_by_vmap), block),
        (coin(coin_by_op), coin(coin_by_vmap), images),
    ],
    ids=["titans", "titans' block", "COIN++"],
)
@both
def test_same_numbers_and_outer_gradients(backend, ours, theirs, tensors):
    given = tensors()
    torch.testing.assert_close(values_and_grads(ours, given), values_and_grads(theirs, given))


@pytest.mark.parametrize("residual", [True, False])
def test_what_titans_itself_computes(residual):
    module = peer("titans_pytorch").neural_memory.NeuralMemory(WIDTH, N, mem_model_norm_add_residual=residual)
    *weights, keys, values, rates, gamma = block()
    weights[:] = torch.randn(T, WIDTH, 4 * WIDTH, dtype=D), torch.randn(T, 4 * WIDTH, WIDTH, dtype=D)
    given = {name: gamma if "gamma" in name else None for name, _ in module.memory_model.named_parameters()}
    remaining = iter(weights)
    named = {name: next(remaining) if value is None else value for name, value in given.items()}
    theirs, _ = module.per_sample_grad_fn(named, keys, rates, values)
    ours = titans_by_op(weights, keys, values, rates, *([gamma] if residual else []))
    torch.testing.assert_close(ours, tuple(sorted(theirs.values(), key=lambda g: g.ndim, reverse=True)))

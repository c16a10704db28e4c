from functools import partial

import pytest
import torch

import fastmeta
from measure import flops
from measure.contenders import by_reference, compiled, mlp, on_backends
from measure.memories import titans_by_op, titans_by_vmap


@pytest.mark.parametrize(("widths", "classes"), [((1, 40, 40, 1), None), ((64, 5), 5)], ids=str)
def bench_mlp_grad(race, widths, classes):
    params, x, y = mlp(widths, 25, 10, classes)
    params = [p.detach() for p in params]
    loss = "cross_entropy" if classes else "mse"
    eager, made = by_reference("mlp_grad", ("relu", loss), params, x, y)
    race(
        f"mlp_grad {widths} T25 n10 {loss}",
        on_backends(partial(fastmeta.mlp_grad, params, x, y, loss=loss))
        | {name: partial(way, params, x, y) for name, way in eager.items()},
        compiled={name: partial(way, params, x, y) for name, way in made.items()},
    )


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
def bench_titans_memory(race, residual):
    """32 chunks of 64 tokens, by a memory of 64 features and a hidden layer of 256, as a residual block or not."""
    weights = [torch.randn(32, 64, 256) / 8, torch.randn(32, 256, 64) / 16]
    tokens = [torch.randn(32, 64, 64), torch.randn(32, 64, 64), torch.rand(32, 64)]
    tokens += [torch.randn(32, 64)] if residual else []
    race(
        f"mlp_grad of titans' memory (64, 256, 64) T32 n64{', residual' if residual else ''}",
        on_backends(partial(titans_by_op, weights, *tokens))
        | {"vmap(grad)": partial(titans_by_vmap, weights, *tokens)},
        compiled={"compiled vmap(grad)": partial(compiled(titans_by_vmap), weights, *tokens)},
        floor=(0, 32 * flops.gradients(*flops.products((64, 256, 64), 64))),
    )

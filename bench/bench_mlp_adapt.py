from functools import partial

import pytest
import torch

from measure import flops, inner_loops
from measure.contenders import compiled, on_backends
from measure.inner_loops import WORKLOADS
from measure.memories import coin_by_op, coin_by_vmap


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name.startswith("W")])
def bench_mlp_adapt(race, name):
    """A meta-iteration in two ops, adaptation and query loss, beside the one op that does both."""
    workload = WORKLOADS[name]
    arguments = inner_loops.arguments(workload)

    def by(way):
        return inner_loops.eager(partial(way, **workload.options), arguments)

    race(
        f"mlp_adapt + mlp_loss {name}",
        on_backends(by(inner_loops.in_two_ops)) | {"by hand": by(inner_loops.by_hand)},
        also={"mlp_meta_loss": by(inner_loops.in_one_op)},
        floor=(0, flops.meta_iteration(workload)),
        mode="meta-iteration",
    )


def bench_coin_shifts(race):
    """Three steps on the shifts of 16 images of 20 x 20 pixels, by a sine network with three layers of 64."""
    widths = (2, 64, 64, 64, 1)
    params = [
        p for a, b in zip(widths, widths[1:], strict=False) for p in (torch.randn(b, a) / 30 / a**0.5, torch.zeros(b))
    ]
    given = params, torch.rand(400, 2) * 2 - 1, torch.rand(16, 400, 1), torch.full((3,), 0.01), 30.0
    race(
        "mlp_adapt of COIN++'s shifts (2, 64, 64, 64, 1) T16 n400 K3",
        on_backends(partial(coin_by_op, *given)) | {"vmap(grad)": partial(coin_by_vmap, *given)},
        compiled={"compiled vmap(grad)": partial(compiled(coin_by_vmap), *given)},
    )

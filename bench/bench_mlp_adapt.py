from functools import partial

import pytest

from measure import flops, inner_loops
from measure.contenders import on_backends
from measure.inner_loops import WORKLOADS


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

"""How long the first call takes in a fresh process, imports excluded: kernels are built already, a compiler has to be waited for."""

import sys
import tempfile
import time
from functools import partial

import pytest

import fastmeta
from measure import inner_loops
from measure.contenders import in_new_process

TITLE = "first call in a fresh process, ms (imports excluded)"
LIMIT = 50  # ms
WORKLOAD = inner_loops.WORKLOADS["W1 sinusoid MAML K5"]
OPS = {"mlp_meta_loss": inner_loops.in_one_op, "mlp_adapt + mlp_loss": inner_loops.in_two_ops}


@pytest.mark.parametrize("op", OPS)
def bench_first_call(request, table, op):
    option = request.config.getoption
    cells = {"ext": in_new_process(__file__, op)}
    assert option("benchmark_disable") or cells["ext"] < LIMIT
    if not (option("benchmark_disable") or option("no_compile") or option("quick")):
        with tempfile.TemporaryDirectory() as cache:
            cells["compiled"] = in_new_process(__file__, "compiled", TORCHINDUCTOR_CACHE_DIR=cache)
    table(TITLE, f"{op} sinusoid MAML K5", cells)


def main(op):
    arguments = inner_loops.arguments(WORKLOAD)
    if op == "compiled":
        run = inner_loops.in_one_graph(partial(inner_loops.by_func, **WORKLOAD.options), arguments)
    else:
        run = inner_loops.eager(partial(OPS[op], **WORKLOAD.options), arguments)
    with fastmeta.backend("ext"):
        start = time.perf_counter()
        run()
        print(1e3 * (time.perf_counter() - start))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Peak memory of a contender of a bench, in a process of its own on one thread."""

import subprocess
import sys
from pathlib import Path

import fastmeta
from gpu import race as gpu_race
from measure import inner_loops
from measure.common import in_new_process
from measure.recorded import given
from measure.session import label


def peak(warm_up, run):
    """KiB by which the resident set rises above what it is before the call."""
    warm_up()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def peak_of(function, arguments, way):
    """Bytes on top of the inputs, what is kept for the next call included; None where the process did not end well."""
    module = function.__module__.removeprefix("bench_")
    try:
        return 1024 * in_new_process(__file__, module, label(function, arguments), way, OMP_NUM_THREADS="1")
    except subprocess.CalledProcessError:
        return None


def main(module, wanted, way):
    function, arguments = next(call for call in gpu_race.calls(module) if label(*call) == wanted)
    bench = given(function, arguments)
    run = (bench.contenders | bench.also | bench.compiled)[way]

    def warm_up():
        """What torch loads and keeps at the first call of its kind."""
        small = inner_loops.SINUSOID._replace(tasks=2)
        for way in (inner_loops.in_one_op, inner_loops.by_autograd, inner_loops.by_vmap):
            inner_loops.meta_iteration(way, small)()

    with fastmeta.backend("ext"):
        print(peak(warm_up, run))


if __name__ == "__main__":
    main(*sys.argv[1:])

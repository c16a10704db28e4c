"""What a contender takes beside time: operations that PyTorch dispatches, and peak memory, in a process of its own on one thread."""

import subprocess
import sys
from pathlib import Path

from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import fastmeta
from measure import inner_loops
from measure.benches import calls, given, label
from measure.contenders import in_new_process


class Counting(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def dispatched(fn, profiled=False):
    """`profiled`, which takes long where they are many: for what is compiled, which does not run under a mode (the operations that are
    left beside its own kernels), and for what runs inside an op of ours. Those inside of others are not counted."""
    if not profiled:
        with Counting() as counting:
            fn()
        return counting.count
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as found:
        fn()
    called = [event for event in found.events() if event.name.startswith("aten::")]
    return sum(not (event.cpu_parent and event.cpu_parent.name.startswith("aten::")) for event in called)


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
    module = function.__module__.rpartition(".")[2].removeprefix("bench_")
    try:
        return 1024 * in_new_process(
            "-m", "measure.usage", module, label(function, arguments), way, OMP_NUM_THREADS="1"
        )
    except subprocess.CalledProcessError:
        return None


def main(module, wanted, way):
    function, arguments = next(call for call in calls(module) if label(*call) == wanted)
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

"""How many operations PyTorch dispatches in a call."""

from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode


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

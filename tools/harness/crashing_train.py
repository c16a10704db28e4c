"""examples/train.py, but that rank 1 kills itself in its seventh meta-iteration, unless torchrun has restarted it."""

import itertools
import os
import runpy
import signal

import common

from harness.places import EXAMPLES

adam = common.adam


def crashing(*args):
    """Each optimiser counts its own steps."""
    optimiser, steps = adam(*args), itertools.count(1)

    def crash(*_):
        if next(steps) == 7 and (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
            os.kill(os.getpid(), signal.SIGKILL)

    optimiser.register_step_pre_hook(crash)
    return optimiser


common.adam = crashing
runpy.run_path(str(EXAMPLES / "train.py"), run_name="__main__")

"""examples/train.py, but that rank 1 kills itself in its seventh meta-iteration, unless torchrun has restarted it."""

import os
import runpy
import signal

import common

from harness.places import EXAMPLES

meta_step, steps = common.meta_step, 0


def crashing(*args):
    global steps
    steps += 1
    if steps == 7 and (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
        os.kill(os.getpid(), signal.SIGKILL)
    return meta_step(*args)


common.meta_step = crashing
runpy.run_path(str(EXAMPLES / "train.py"), run_name="__main__")

"""Starts the ranks of a process group as processes, without torchrun: the store that they meet at is this process's, on a free port."""

import contextlib
import os
import subprocess
import sys

import torch.distributed as dist

from harness.forks import Fork
from harness.places import ROOT


@contextlib.contextmanager
def ranks(world_size, *words, apart=False, **env):
    """The running `python words...`, one for each rank; none outlives the block. `apart`: the last is no fork, so that it has another
    hash seed."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    given = os.environ | {"OMP_NUM_THREADS": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"} | env
    given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(world_size)}
    command, pipes = [sys.executable, *map(str, words)], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = []
    try:
        for rank in range(world_size):
            of_rank = given | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            if apart and rank == world_size - 1:
                started.append(subprocess.Popen(command, cwd=ROOT, env=of_rank, text=True, **pipes))
            else:
                started.append(Fork(*words, cwd=ROOT, env=of_rank))
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()

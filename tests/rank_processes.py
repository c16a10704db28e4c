"""Starts the ranks of a process group as subprocesses, without torchrun: the store that they meet at is this process's, on a free port."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import torch.distributed as dist

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def ranks(world_size, *words, **env):
    """The running `python words...`, one for each rank; none outlives the block."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    given = os.environ | {"OMP_NUM_THREADS": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"} | env
    given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(world_size)}
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, words)], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=given | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world_size)
    ]  # fmt: skip
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()

"""The processes of a training: their group, what one tells the others, and the random states of each."""

from __future__ import annotations

import datetime
import gc
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous


def start(device: str, timeout: int) -> None:
    """The process group that torchrun's variables describe, if there are any."""
    if "WORLD_SIZE" not in os.environ:
        return
    wait = datetime.timedelta(seconds=timeout)
    store, rank, world_size = next(rendezvous("env://", timeout=wait))
    # After a restart torchrun's store still has the addresses of the dead processes: each attempt gets names of its own.
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=wait)


def finish() -> None:
    """Called when nothing holds the process group any more: its threads must not run into the interpreter's end."""
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def own_gpu() -> None:
    """Under torchrun `--device cuda` is another GPU for every process of a machine."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    if rank < torch.cuda.device_count():
        torch.cuda.set_device(rank)


def noise() -> list[Tensor]:
    """The states of torch's random generators, the CPU's and this rank's GPU's."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def set_noise(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[1])


def of_all(own: Any) -> list[Any]:
    if not dist.is_initialized():
        return [own]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


def of_first(make: Callable[[], Any]) -> Any:
    """What rank 0 makes, or raises: no other needs to see its files."""
    found: list[Any] = [None, None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            found[0] = make()
        except (OSError, ValueError) as error:
            found[1] = error
    if dist.is_initialized():
        dist.broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]

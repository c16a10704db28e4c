"""The emulator and its checker find what they are there for: a planted fault of every kind, in whatever order threads run."""

import re
import shutil
from pathlib import Path

import pytest

from emulator import emulation
from emulator.planted import ORDERS, run
from fastmeta import _C

LINE = r" at planted\.cu:\d+" if shutil.which("addr2line") else " at 0x"
RACE = "race of a {} and a {}: {} at byte .*, by thread .*" + LINE + ", and by thread .*" + LINE
FAULTS = {
    "no_barrier": "race of a (write and a read|read and a write): dynamic shared memory at byte .*" + LINE,
    "no_second_barrier": RACE.format("read", "write", "dynamic shared memory")
    + "|"
    + RACE.format("write", "read", "dynamic shared memory"),
    "read_by_many_then_written": r"race of a .*: dynamic shared memory at byte 0 of 256 \(element 0\), by thread",
    "two_writers": "race of two writes: dynamic shared memory at byte 0 ",
    "no_syncwarp": "race of a .*: dynamic shared memory",
    "no_second_syncwarp": "race of a .*: dynamic shared memory",
    "shuffle_for_a_barrier": "race of a .*: dynamic shared memory",
    "syncwarp_between_warps": "race of a .*: dynamic shared memory",
    "blocks_write_one_place": "race of two writes: scratch .* of another block",
    "blocks_read_what_another_writes": "race of a write and a read: scratch at byte 0 .* of another block",
    "a_block_writes_what_another_has_read": "race of a read and a write: scratch at byte 0 .* of another block",
    "uninitialised_dynamic": "read of uninitialised memory: dynamic shared memory at byte 0 ",
    "uninitialised_static": "read of uninitialised memory: row at byte 20 of 256 ",
    "uninitialised_scratch": "read of uninitialised memory: scratch",
    "reads_beyond_input": "read out of bounds: in at byte 256 of 256",
    "writes_beyond_output": "write out of bounds: out at byte 512 of 512",
    "reads_beyond_dynamic": "read out of bounds: dynamic shared memory at byte 256 of 256",
    "writes_beyond_static": "write out of bounds: row at byte 256 of 256",
    "writes_input": "write to an input: in at byte ",
    "leaves_an_output": r"an output that is never written: out at byte 28 of 512 \(element 7\)",
    "half_the_block_at_a_barrier": r"same __syncthreads, got\n  32 threads at planted\.cu:\d+\n  32 threads at the end",
    "two_barriers": r"same __syncthreads, got\n  32 threads at planted\.cu:\d+\n  32 threads at planted\.cu:\d+",
    "half_a_warp_shuffles": r"shuffle or __syncwarp, got\n  16 threads at planted\.cu:\d+\n  16 threads at the end",
    "a_barrier_against_a_shuffle": r"shuffle or __syncwarp, got\n  8 threads at planted\.cu:\d+\n  24 threads at planted",
    "partial_mask": "the emulator knows shuffles and __syncwarp of whole warps, got another mask",
    "much_shared_memory": "shared memory must hold the block's arrays, got 50256 bytes",
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name, order):
    assert re.search(FAULTS[name], run(name, order)), run(name, order)
    assert run("right", order) == ""  # a fault leaves nothing behind


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["right", "with_syncwarp"])
def test_right_kernels_pass(name, order):
    assert run(name, order) == ""


def test_what_is_wrong_between_blocks_only_passes_with_one():
    assert run("blocks_write_one_place", "forward", blocks=1) == ""
    assert run("blocks_write_one_place", "forward", blocks=0) == "invalid argument"


def test_the_extension_holds_no_emulator():
    assert b"the emulator" not in Path(_C.__file__).read_bytes()
    assert b"the emulator" in emulation.compile_planted("checked").read_bytes()

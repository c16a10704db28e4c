"""Blocks on a multiprocessor, counted by hand."""

import pytest

from gates.occupancy import blocks_per_multiprocessor, occupancy

KIB = 1024
BY_HAND = (  # architecture, registers, threads, shared bytes; blocks, and their share of the warps
    ("80", 32, 1024, 0, 2, 1.0),  # 1024 registers a warp: 16 on each quarter of 16384, 64 warps in all
    ("80", 33, 1024, 0, 1, 0.5),  # 1056 become 1280: 12 on each quarter, 48 warps, one block of 32
    ("80", 33, 64, 0, 24, 0.75),  # 51 warps of 1280 would find room in one piece
    ("80", 128, 256, 0, 2, 0.25),  # 4096 a warp: 4 on each quarter
    ("80", 255, 256, 0, 1, 0.125),  # 8160 become 8192: 2 on each quarter
    ("80", 168, 96, 0, 4, 0.1875),  # 5376 a warp: 3 on each quarter, 12 warps
    ("80", 16, 32, 0, 32, 0.5),  # no more blocks than 32
    ("80", 32, 128, 40 * KIB, 4, 0.25),  # with CUDA's own 41 KiB of 164
    ("80", 32, 128, 40 * KIB + 1, 3, 0.1875),  # 128 bytes more
    ("80", 255, 512, 0, 0, 0.0),  # 16 warps, of which 8 find registers
    ("90a", 32, 256, 227 * KIB, 1, 0.125),
    ("90a", 32, 256, 113 * KIB, 2, 0.25),
    ("100", 128, 256, 0, 2, 0.25),
    ("120", 32, 256, 0, 6, 1.0),  # 48 warps
    ("120", 128, 256, 0, 2, 1 / 3),
    ("120", 24, 32, 0, 24, 0.5),  # no more blocks than 24
    ("120", 32, 128, 49 * KIB, 2, 1 / 6),  # 50 KiB of 100
    ("120", 32, 128, 99 * KIB + 1, 0, 0.0),
    ("gfx942", 64, 256, 0, 8, 1.0),  # 8 waves on each of 4 SIMDs
    ("gfx942", 65, 256, 0, 7, 0.875),  # 72 of 512
    ("gfx942", 256, 256, 0, 2, 0.25),
    ("gfx942", 32, 128, 20 * KIB, 3, 0.1875),  # 3 of 64 KiB, 2 waves each
)


@pytest.mark.parametrize(("arch", "registers", "threads", "shared", "blocks", "share"), BY_HAND)
def test_by_hand(arch, registers, threads, shared, blocks, share):
    assert blocks_per_multiprocessor(arch, registers, threads, shared) == blocks
    assert occupancy(arch, registers, threads, shared) == pytest.approx(share)

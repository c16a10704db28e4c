"""How many blocks of a kernel a multiprocessor holds at a time, and which share of its warps (waves) that is.

NVIDIA, as CUDA's occupancy calculator has it: a warp takes registers in units of 256, from the quarter of the register file that
it runs on; a block takes its shared memory and 1 KiB for the system, in units of 128 bytes. AMD's gfx942: a wave of 64 threads
takes registers in units of 8 from the 512 of each lane of its SIMD, which holds at most 8 waves; a workgroup takes its local
memory.
"""

from dataclasses import dataclass

KIB = 1024
RESERVED = KIB  # shared memory that CUDA itself takes in each block, since sm_80


@dataclass(frozen=True)
class Multiprocessor:
    """Or compute unit: what is shared out among blocks."""

    warps: int
    blocks: int
    shared: int  # bytes
    registers: int = 64 * KIB  # of 32 bits, for all lanes
    parts: int = 4  # a warp stays on one
    unit: int = 256  # of registers, for a whole warp
    reserved: int = RESERVED
    lanes: int = 32


MULTIPROCESSORS = {
    "80": Multiprocessor(64, 32, 164 * KIB),
    "90": Multiprocessor(64, 32, 228 * KIB),
    "100": Multiprocessor(64, 32, 228 * KIB),
    "120": Multiprocessor(48, 24, 100 * KIB),
    "gfx942": Multiprocessor(32, 32, 64 * KIB, registers=4 * 512 * 64, unit=8 * 64, reserved=0, lanes=64),
}


def up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def blocks_per_multiprocessor(arch: str, registers: int, threads: int, shared: int) -> int:
    """`registers` of a thread, `shared` bytes of a block; 0 where not one block fits."""
    m = MULTIPROCESSORS[arch.rstrip("a")]
    warps = -(-threads // m.lanes)
    of_part = m.registers // m.parts // up(max(registers, 1) * m.lanes, m.unit)
    by_shared = m.shared // (up(shared + m.reserved, 128) or 1)
    return min(m.warps // warps, m.blocks, of_part * m.parts // warps, by_shared)


def occupancy(arch: str, registers: int, threads: int, shared: int) -> float:
    """The share of a multiprocessor's warps that such blocks fill."""
    m = MULTIPROCESSORS[arch.rstrip("a")]
    return blocks_per_multiprocessor(arch, registers, threads, shared) * -(-threads // m.lanes) / m.warps

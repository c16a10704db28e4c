"""What the machine code of a GPU kernel holds, read without a GPU: cubins by the cuobjdump of the triton wheel, AMD's assembly as
it is."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

from emulator.emulation import kept
from gates.occupancy import RESERVED, occupancy

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_.a-z]*)", re.M)
USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
THREADS = re.compile(
    r"^\.nv\.info\.(\S+)$(?:(?!^\.).*\n)*?\s+Attribute:\s+EIATTR_(?:MAX_THREADS|REQNTID)\n.*\n\s+Value:\s+(\w+)", re.M
)


@dataclass
class Code:
    """One kernel on one architecture."""

    kernel: str
    arch: str
    registers: int  # of a thread
    local: int  # bytes of local memory of a thread, where spills go
    local_accesses: int  # instructions
    shared: int  # bytes of static shared memory of a block
    threads: int  # of a block, the most it is compiled for
    loads: int  # instructions that load from global memory, or from wherever a pointer leads
    wide_loads: int  # of 16 bytes or more a thread
    stores: int
    wide_stores: int
    tensor_core: int
    tf32: int  # of those

    def occupancy(self, dynamic_shared: int = 0) -> float:
        return occupancy(self.arch, self.registers, self.threads, self.shared + dynamic_shared)


def counter(instructions):
    found = Counter(instructions)
    return lambda pattern: sum(n for name, n in found.items() if re.search(pattern, name))


def of_cubin(cubin: bytes, arch: str) -> list[Code]:
    """Every kernel of a cubin; what was read of it is kept in build/emulation."""
    state = (cubin, arch.encode(), Path(__file__).read_bytes(), str(RESERVED).encode())
    return [Code(**fields) for fields in kept(state, ".codes.json", lambda: list(map(vars, _read(cubin, arch))))]


def _read(cubin: bytes, arch: str) -> list[Code]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass, elf = (
            subprocess.run([CUOBJDUMP, flag, file.name], check=True, capture_output=True, text=True).stdout
            for flag in ("--dump-resource-usage", "-sass", "-elf")
        )
    bodies = {body.split(None, 1)[0]: body for body in sass.split("Function : ")[1:]}
    threads = {kernel: int(count, 16) for kernel, count in THREADS.findall(elf)}
    found = []
    for kernel, *numbers in USAGE.findall(usage):
        registers, stack, shared, local = map(int, numbers)
        count = counter(INSTRUCTION.findall(bodies[kernel]))
        found.append(
            Code(
                kernel,
                arch,
                registers,
                stack + local,
                count(r"^(STL|LDL)"),
                max(
                    shared - (RESERVED if int(arch.rstrip("a")) >= 90 else 0), 0
                ),  # without CUDA's own, counted since sm_90
                threads[kernel],
                count(r"^(LDG|LDGSTS|LD)\.|^UTMALDG|^UBLKCP"),
                count(r"^(LDG|LDGSTS|LD)\..*(128|256)|^UTMALDG|^UBLKCP"),
                count(r"^(STG|ST)\.|^UTMASTG"),
                count(r"^(STG|ST)\..*(128|256)|^UTMASTG"),
                count(r"^(H|I|D|Q|O|HG|QG|IG)MMA|^UTC\w*MMA"),
                count(r"MMA.*TF32"),
            )
        )
    return found


def of_amdgcn(text: str, arch: str) -> list[Code]:
    """The one kernel of an assembly of Triton's."""

    def number(name):
        return int(re.search(rf"^\s+\.{name}:\s+(\d+)", text, re.M)[1])

    count = counter(re.findall(r"^\s+([a-z]\w+)", text, re.M))
    code = Code(
        re.search(r"^\s+\.name:\s+(\w+)\n(?:.*\n)*?\s+\.private_segment_fixed_size", text, re.M)[1],
        arch,
        number("vgpr_count"),
        number("private_segment_fixed_size"),
        count(r"^scratch_"),
        number("group_segment_fixed_size"),
        number("max_flat_workgroup_size"),
        count(r"^(global|buffer|flat)_load_"),
        count(r"^(global|buffer|flat)_load_(dwordx4|b128)"),
        count(r"^(global|buffer|flat)_store_"),
        count(r"^(global|buffer|flat)_store_(dwordx4|b128)"),
        count(r"^v_s?mfmac?_"),
        count(r"^v_s?mfmac?_.*xf32"),
    )
    return [code]

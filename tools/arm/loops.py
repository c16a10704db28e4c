"""The innermost loops of an object for aarch64: how many multiply-adds of vectors each has, and how often it goes to the stack."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LINE = re.compile(r"^ *([0-9a-f]+):\t(\S+)\t?(.*)$", re.MULTILINE)
JUMP = re.compile(r"\b([0-9a-f]+) <")


class Loop(NamedTuple):
    function: str
    instructions: int
    multiply_adds: int
    on_stack: int


def loops(path: Path) -> Iterator[Loop]:
    command = ["aarch64-linux-gnu-objdump", "--disassemble", "--demangle", "--no-show-raw-insn", str(path)]
    text = subprocess.check_output(command, text=True)
    for name, body in re.findall(r"^[0-9a-f]+ <(.*)>:\n((?: .*\n)*)", text, re.MULTILINE):
        yield from loops_of(name, LINE.findall(body))


def loops_of(function: str, lines: list[tuple[str, str, str]]) -> Iterator[Loop]:
    place = {int(address, 16): i for i, (address, *_) in enumerate(lines)}
    begin = 0  # where an innermost loop may begin: behind the last jump back
    for i, (_, name, operands) in enumerate(lines):
        target = JUMP.search(operands) if name.startswith(("b", "cb", "tb")) and name != "bl" else None
        to = place.get(int(target[1], 16), i) if target else i
        if not begin <= to < i:
            continue
        begin = i
        body = lines[to : i + 1]
        sums = sum(name in ("fmla", "fmls") for _, name, _ in body)
        yield Loop(function, len(body), sums, sum("[sp" in operands for *_, operands in body))

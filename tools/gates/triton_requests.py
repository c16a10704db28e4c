"""How the warps of the Triton kernels reach global memory: the addresses come from Triton's interpreter, the thread that holds
each of them from the layout that the compiler chose for it (its TTGIR), and the sectors are counted as in memory_requests.py.

What a thread holds side by side in a layout, up to 16 bytes, counts as one access of it: the compiler lays out so what it knows
to be contiguous. Only NVIDIA's warps of 32 are counted.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np

from gates.memory_requests import Line

SECTOR, WIDEST = 32, 16  # bytes
HERE = Path(__file__)
MOST = 24  # how many times a line is looked at
ACCESS = re.compile(
    r"(tt\.load|tt\.store|ttg\.async_copy_global_to_local) .*?: tensor<([0-9x]+)x!tt\.ptr<(\w+)>, (.*) loc\((#loc\d*)\)"
)
# The lines of an access, the innermost first; its direction; the shape of its block.
Place = tuple[tuple[tuple[str, int], ...], str, tuple[int, ...]]
# By kernel and place, blocks of addresses: 0 where the mask lets none through.
Recorded = dict[str, dict[Place, list[np.ndarray]]]


@contextmanager
def addresses() -> Iterator[Recorded]:
    """Notes what interpreted kernels access."""
    from triton.runtime import interpreter

    kernel, found = "", defaultdict(lambda: defaultdict(list))
    builder, function = interpreter.InterpreterBuilder, interpreter.InterpretedFunction
    load, store, run = builder.create_masked_load, builder.create_masked_store, function.run

    def note(direction, pointers, mask):
        frame, lines = sys._getframe(2), []
        while frame.f_code.co_name != "run" or "triton" not in frame.f_code.co_filename:
            path = Path(frame.f_code.co_filename)
            if "triton" not in path.parts and path != HERE:
                lines.append((path.name, frame.f_lineno))
            frame = frame.f_back
        if pointers.data.size > 1:
            blocks = found[kernel][tuple(lines), direction, pointers.data.shape]
            if len(blocks) < MOST:
                blocks.append(np.where(np.broadcast_to(mask.data, pointers.data.shape), pointers.data, 0))

    def noted_load(self, pointers, mask, *rest):
        note("load", pointers, mask)
        return load(self, pointers, mask, *rest)

    def noted_store(self, pointers, value, mask, *rest):
        note("store", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def noted_run(self, *args, **kwargs):
        nonlocal kernel
        kernel = self.fn.__name__
        return run(self, *args, **kwargs)

    builder.create_masked_load, builder.create_masked_store, function.run = noted_load, noted_store, noted_run
    try:
        yield found
    finally:
        builder.create_masked_load, builder.create_masked_store, function.run = load, store, run


def numbers(text: str, name: str) -> list[int]:
    return [int(n) for n in re.search(rf"{name} = \[([0-9, ]*)\]", text)[1].split(",")]


def spread(sizes: list[int], order: list[int]) -> np.ndarray:
    """[product of sizes, rank]: coordinates, the first dimension of `order` fastest."""
    found = np.array(list(product(*(range(sizes[d]) for d in reversed(order)))), int).reshape(-1, len(sizes))
    return found[:, [list(reversed(order)).index(d) for d in range(len(sizes))]]


def holders(layout: str, named: dict[str, str], shape: tuple[int, ...]) -> np.ndarray | None:
    """Which element of a block each thread holds in each register, [warps, lanes, registers, rank]; None for what a tensor core
    leaves."""
    layout = named.get(layout, layout)
    if "_mma" in layout:
        return None
    if layout.startswith("#ttg.slice"):
        dim, parent = re.fullmatch(r"#ttg\.slice<\{dim = (\d+), parent = (.*)\}>", layout).groups()
        at = holders(parent, named, (*shape[: int(dim)], 1, *shape[int(dim) :]))
        return None if at is None else np.delete(at, int(dim), axis=-1)
    if layout.startswith("#ttg.linear"):
        warp, lane, register = (
            combinations(re.search(rf"{part} = \[(.*?)\](?:, \w|\}})", layout)[1], len(shape))
            for part in ("warp", "lane", "register")
        )
        return warp[:, None, None] ^ lane[None, :, None] ^ register[None, None, :]
    each, lanes, warps, order = (
        numbers(layout, x) for x in ("sizePerThread", "threadsPerWarp", "warpsPerCTA", "order")
    )
    whole = np.array(each) * lanes * warps
    again = [max(n // w, 1) for n, w in zip(shape, whole, strict=True)]
    register = (spread(again, order)[:, None] * whole + spread(each, order)[None, :]).reshape(-1, len(shape))
    warp = spread(warps, order) * (np.array(each) * lanes)
    lane = spread(lanes, order) * np.array(each)
    return (warp[:, None, None] + lane[None, :, None] + register[None, None, :]) % np.array(shape)


def combinations(bases: str, rank: int) -> np.ndarray:
    """[2^n, rank]: the exclusive or of every choice of n vectors."""
    found = np.zeros((1, rank), int)
    for base in re.findall(r"\[([0-9, ]+)\]", bases):
        found = np.concatenate([found, found ^ np.array([int(n) for n in base.split(",")])])
    return found


def side_by_side(at: np.ndarray) -> int:
    """How many of a thread's first registers hold elements next to each other."""
    away = at[0, 0] - at[0, 0, 0]
    count = 1
    while count < len(away) and away[1].sum() == 1 and (away[count] == count * away[1]).all():
        count += 1
    return count


def requests(block: np.ndarray, at: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The addresses of each request of a warp, one number for every element."""
    held = block[tuple(np.moveaxis(at, -1, 0))]  # [warps, lanes, registers]
    together = min(side_by_side(at), max(WIDEST // size, 1))
    for warp in held:
        for first in range(0, held.shape[2], together):
            found = np.unique(warp[:, first : first + together])
            found = found[found != 0]
            if found.size:
                yield found


def lines_of(kernel: str, ttgir: str, recorded: Recorded) -> list[Line]:
    """The accesses of a kernel's blocks in global memory, by line."""
    named = dict(re.findall(r"^(#\w+) = (#ttg\..*)$", ttgir, re.M))
    locations = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttgir, re.M))

    def lines(location):
        text = locations[location]
        if call := re.fullmatch(r"callsite\((#loc\d*) at (#loc\d*)\)", text):
            return lines(call[1]) + lines(call[2])
        if name := re.fullmatch(r"\"[^\"]*\"\((#loc\d*)\)", text):
            return lines(name[1])
        file, line = re.match(r"\"(.*)\":(\d+):", text).groups()
        return ((Path(file).name, int(line)),)

    found: dict[Place, Line] = {}
    for what, dims, element, rest, location in sorted(set(ACCESS.findall(ttgir))):
        place = lines(location), "store" if what == "tt.store" else "load", tuple(int(d) for d in dims.split("x"))
        at = holders(rest[: _end(rest)], named, place[2])
        size = int(re.search(r"\d+", element)[0]) // 8
        file, line = place[0][0]
        entry = found.setdefault(place, Line(kernel, "global", place[1], file, f"{file}:{line}"))
        for block in recorded[kernel].get(place, []) if at is not None else []:
            for request in requests(block, at, size):
                entry.requests += 1
                entry.cost += len(np.unique(request // SECTOR))
                entry.least += -(-request.size * size // SECTOR)
    return [line for line in found.values() if line.requests]


def _end(text: str) -> int:
    """Where the bracket that was open before `text` closes."""
    depth = 1
    for i, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">" and text[i - 1] != "-")
        if depth == 0:
            return i
    raise ValueError(text)

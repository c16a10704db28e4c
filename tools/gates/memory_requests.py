"""How the warps of the CUDA kernels reach memory, counted by the emulator (tools/emulator/requests.h) as they run on small
problems: 32-byte sectors for each request to global memory, wavefronts for each to shared memory, and what would be least."""

import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import fastmeta
from emulator import emulation
from gates.cuda_gates import short_name
from harness import conv_cases
from harness.compare import values_and_grads
from harness.device import tf32_allowed
from harness.mlp_calls import every, meta_loss
from harness.mlp_cases import Mlp, problem
from harness.places import ROOT

MAIN = 0.05  # a line of the source with this share of its kernel's sectors, or wavefronts, belongs to a main loop
BOUND = 2.0  # times the least
EXCEPTIONS = {  # function, direction: why
    ("linear", "store"): "once for every K / 16 loads, a product along K ends on lanes whose rows lie far apart",
    (
        "Part",
        "load",
    ): "rows that are no multiple of 16 bytes apart come number by number; the four requests of a lane for its 16 "
    "bytes meet the same sectors, which the first has brought into L1",
    ("TurnedPart", "load"): "the nine taps of a channel lie together; the next loads meet the sectors of these in L1",
    ("norm_tangent_kernel", "load"): "where a window was won depends on its numbers",
    ("sums_of_tangents", "load"): "where a window was won depends on its numbers",
}
WAYS = (  # backend, rates, whether TF32 is allowed, which ops (of mlp_calls.every): tasks in blocks of their own, layers in tiles, on
    # tensor cores too, and what sums the gradients of a rate for all
    ("emulated", "per element", False, slice(None)),
    ("emulated-layers", "per element", False, slice(None)),
    ("emulated-layers", "per element", True, slice(None)),
    ("emulated-layers", "scalar", False, slice(-1, None)),
)
PROBLEMS = (  # widths, examples, loss, dtype: a head of a hidden layer, and the MLP that fits sinusoids
    ((100, 64, 10), 25, "cross_entropy", torch.float32),
    ((1, 40, 40, 1), 10, "mse", torch.float32),
    ((40, 64, 10), 9, "cross_entropy", torch.float64),
)


@dataclass
class Line:
    """The accesses of a kernel at one line of the source."""

    kernel: str
    memory: str  # global or shared
    direction: str  # load or store
    function: str
    line: str
    requests: int = 0
    cost: int = 0  # sectors or wavefronts
    least: int = 0

    def excess(self) -> float:
        return self.cost / max(self.least, 1)


def lines_of(library: str, table: str) -> list[Line]:
    """Those of a table of the emulator, whose code is in `library`."""
    numbers = [int(word) for word in table.split()]
    rows = [numbers[i : i + 7] for i in range(0, len(numbers), 7)]
    places = sorted({row[0] for row in rows} | {row[1] - 1 for row in rows})  # in the call, not behind it
    command, asked = ["addr2line", "-f", "-C", "-s", "-e", library], "".join(f"{place:#x}\n" for place in places)
    text = subprocess.check_output(command, input=asked, text=True).splitlines()
    named = zip(places, text[::2], text[1::2], strict=True)
    names = {place: (function, line.split(" (")[0]) for place, function, line in named}
    found: dict[tuple[str, ...], Line] = {}
    for kernel, site, shared, writes, *sums in rows:
        function, line = names[site - 1]
        where = "shared" if shared else "global", "store" if writes else "load"
        key = (short_name(names[kernel][0]), *where, short_name(function).split("<")[0], line)
        entry = found.setdefault(key, Line(*key))
        before = entry.requests, entry.cost, entry.least
        entry.requests, entry.cost, entry.least = (x + y for x, y in zip(before, sums, strict=True))
    return list(found.values())


def counted(run: Callable[[], object]) -> list[Line]:
    """What the emulated kernels do while `run` runs."""
    emulator = emulation.module()
    emulator.count_requests(True)
    try:
        run()
        table = emulator.requests()
    finally:
        emulator.count_requests(False)
    return lines_of(emulator.__file__, table)


def of_all_ops(*of_problem) -> list[Line]:
    """Every op with all its gradients, in each way, on one of PROBLEMS; what was counted is kept in build/emulation."""
    sources = [
        Path(__file__),
        *sorted((ROOT / "fastmeta").rglob("*.py")),
        *sorted((ROOT / "tools/harness").glob("*_c*.py")),
    ]
    state = [repr(of_problem).encode(), emulation.module().__file__.encode(), *(path.read_bytes() for path in sources)]
    return [Line(**x) for x in emulation.kept(state, ".lines.json", lambda: list(map(vars, _of_all_ops(*of_problem))))]


def _of_all_ops(widths, n, loss, dtype) -> list[Line]:
    torch.manual_seed(0)
    p = problem(widths, n, T=1, loss=loss, activation="relu", dtype=dtype)

    def run():
        for backend, rates, tf32, ops in WAYS:
            if tf32 and dtype != torch.float32:
                continue
            with fastmeta.backend(backend), tf32_allowed(tf32):
                for fn, tensors in every(p, rates, False)[ops]:
                    fn(*tensors)
                    values_and_grads(fn, tensors)
        _run_wide_head(problem((1024, widths[-1]), n, T=1, loss=loss, dtype=dtype))
        for images, channels in ((2, 32), (1, 64)):  # in tiles of 32 channels, and of 64
            _run_convs(conv_cases.problem(n=images, channels=channels, inputs=3, size=16, T=1, dtype=dtype))

    return counted(run)


def _run_wide_head(p: Mlp) -> None:
    """mlp_meta_loss where a task gets several blocks, with the gradients to parameters and the rate."""
    fn, tensors = meta_loss(p, "scalar", 2)
    count = len(p.flat) + 1
    emulation.module().set_device(132, emulation.DEVICE[1])
    with fastmeta.backend("emulated"):
        values_and_grads(lambda *t: fn(*t, *tensors[count:]), tensors[:count])
    emulation.reset(emulation.module())


def _run_convs(p: conv_cases.ConvNet) -> None:
    """conv_meta_loss to second order, with the gradients to images and a rate, on the tensor cores too where they may round."""
    fn, tensors = meta_loss(p, "scalar", 1)
    for tf32 in (False, True)[: 1 + (p.x.dtype == torch.float32)]:
        with fastmeta.backend("emulated"), tf32_allowed(tf32):
            values_and_grads(fn, tensors)


def wasteful(lines: list[Line]) -> list[Line]:
    """The lines of main loops that take more than BOUND times the least, but for EXCEPTIONS."""
    of_kernels = Counter()
    for line in lines:
        of_kernels[line.kernel, line.memory] += line.cost
    main = [line for line in lines if line.cost >= MAIN * of_kernels[line.kernel, line.memory]]
    return [x for x in main if x.excess() > BOUND and (x.function, x.direction) not in EXCEPTIONS]

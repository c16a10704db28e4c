"""Writes what the gates see of every kernel into tools/gpu.md, between its two markers: `make gpu-report`."""

import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from harness.places import ROOT

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

import torch

from emulator import emulation
from gates import cuda_gates
from gates.machine_code import Code
from gates.memory_requests import PROBLEMS, Line, of_all_ops
from gates.triton_gates import ARCHITECTURES, CONVOLUTIONS, SHAPES, Judged, accessed_by, compiler, judged_runs
from pages.tables import replaced, table

PAGE = ROOT / "tools/gpu.md"
BEGIN, END = "<!-- make gpu-report writes from here -->", "<!-- to here -->"
STEPS = ("sgd_step", "momentum_step", "adam_step")
DISTANCE = ("proto_log_softmax", "proto_loss", "matching_log_probs")
RUNS = {
    "few": ("prototypes", *DISTANCE, *STEPS),
    "few half": ("prototypes", "proto_loss", "sgd_step"),
    "few double": ("prototypes", "proto_loss", *STEPS),
    "some": DISTANCE,
    "many": DISTANCE,
    "many tf32": ("proto_loss",),
    "many half": DISTANCE,
    "many double": ("proto_loss",),
    **dict.fromkeys(("few more", "some more", "many more", "few soft", "some soft", "many soft"), ("proto_loss",)),
    **dict.fromkeys(CONVOLUTIONS, ("task_conv2d",)),
}
OPTIONS = {
    "more": "; biases, classes, smoothed labels",
    "soft": "; shares, what does not count, biases, smoothed labels, accuracy",
}
OF_CODE = {  # heading of a column, and what it says of a kernel on one architecture; two numbers: one of the other
    "registers": lambda c: (c.registers,),
    "local bytes": lambda c: (c.local,),
    "shared bytes": lambda c: (c.shared,),
    "threads": lambda c: (c.threads,),
    "occupancy %": lambda c: (round(100 * c.occupancy()),),
    "wide loads": lambda c: (c.wide_loads, c.loads),
    "wide stores": lambda c: (c.wide_stores, c.stores),
    "tensor cores": lambda c: (c.tensor_core,),
}


def cell(values: Iterable[int]) -> str:
    """One value where all architectures agree."""
    values = list(map(str, values))
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def code_cells(codes: list[Code]) -> list[str]:
    """The columns of OF_CODE for one kernel."""
    return [" of ".join(map(cell, zip(*map(show, codes), strict=True))) for show in OF_CODE.values()]


def of_requests(lines: list[Line]) -> str:
    """Sectors or wavefronts a request, and how many times the least that is."""
    requests, cost, least = (sum(getattr(x, name) for x in lines) for name in ("requests", "cost", "least"))
    return f"{cost / requests:.1f} ({cost / max(least, 1):.2f})" if requests else "-"


def cuda_rows(codes: list[Code]) -> list[list[str]]:
    float32, _, float64 = PROBLEMS
    counted = [x for problem in (float32, float64) for x in of_all_ops(*problem)]

    def of(kernel, memory):
        return of_requests([x for x in counted if (x.kernel, x.memory) == (kernel, memory)])

    rows = []
    for kernel in sorted({code.kernel for code in codes}):
        own = sorted((code for code in codes if code.kernel == kernel), key=lambda code: int(code.arch.rstrip("a")))
        rows.append([f"`{kernel}`", *code_cells(own)])
        rows[-1] += [of(kernel, "global"), of(kernel, "shared")]
    return rows


def triton_rows(found: list[Judged]) -> list[list[str]]:
    rows = []
    for key in dict.fromkeys((x.op, x.shape, x.code.kernel) for x in found):
        own = [x for x in found if (x.op, x.shape, x.code.kernel) == key]
        lines = [line for x in own for line in x.lines]
        rows.append([key[0], f"`{key[2]}`", key[1], *code_cells([x.code for x in own]), of_requests(lines)])
    return rows


def shape_lines() -> list[str]:
    return [
        f"- {name}: {str(dtype).removeprefix('torch.')}, {metric}, T {T}, Q {Q}, N {N}, D {D}{', TF32 allowed' if tf32 else ''}"
        f"{OPTIONS.get(name.split()[-1], '')}"
        for name, (dtype, metric, T, Q, N, D, tf32) in SHAPES.items()
    ] + [
        f"- {name}: {str(dtype).removeprefix('torch.')}, T {T}, {n} images, {C} x {side} x {side} to {E} channels, 3 x 3, stride {stride}"
        f"{', TF32 allowed' if tf32 else ''}"
        for name, (dtype, T, n, C, side, E, stride, tf32) in CONVOLUTIONS.items()
    ]


def report() -> list[str]:
    emulation.install()
    torch.set_num_threads(1)
    if why := cuda_gates.missing():
        sys.exit(f"make gpu-report: {why}")
    with tempfile.TemporaryDirectory() as folder:
        codes = cuda_gates.kernels(Path(folder))
    accessed = accessed_by(RUNS)
    with compiler():
        found = judged_runs([(shape, ARCHITECTURES, ops) for shape, ops in RUNS.items()], accessed)
        rows = triton_rows(found)
    sectors = "sectors a request"
    return [
        f"CUDA kernels, on sm_{' / '.join(cuda_gates.toolchain.ARCHITECTURES)}:",
        "",
        *table(["kernel", *OF_CODE, sectors, "wavefronts a request"], cuda_rows(codes)),
        f"Triton kernels, on sm_{' / '.join(ARCHITECTURES)}, with arguments of these shapes:",
        "",
        *shape_lines(),
        "",
        *table(["op", "kernel", "shape", *OF_CODE, sectors], rows),
    ]


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text(), report(), BEGIN, END))

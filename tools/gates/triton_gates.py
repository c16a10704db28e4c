"""Compiles the Triton kernels for GPUs that are not here and reads their machine code, beside the interpreter in one process.

Each launcher is called with its `launch` replaced by one that records the kernel and its arguments; Triton's own binder tells what
of them the kernel is compiled for: integers and pointers divisible by 16, integers that are 1, absent tensors.
"""

import ast
import importlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

import fastmeta
from gates import machine_code, triton_requests
from gates.machine_code import Code
from gates.memory_requests import Line
from harness.device import tf32_allowed

ARCHITECTURES = ("80", "90", "100", "120", "gfx942")
TYPES = {torch.int32: "i32", torch.int64: "i64"} | {
    getattr(torch, f"{long}{bits}"): f"{short}{bits}"
    for long, short, bits in (("float", "fp", 64), ("float", "fp", 32), ("float", "fp", 16), ("bfloat", "bf", 16))
}
# name of a case: dtype, metric, T, Q, N, D, whether TF32 is allowed; "... more": with biases, classes and smoothed labels;
# "... soft": with shares as targets, what does not count, biases, smoothed labels and the accuracy
SHAPES = {
    "few": (torch.float32, "euclidean", 2, 75, 5, 64, False),
    "few half": (torch.float16, "cosine", 2, 75, 20, 640, False),
    "few double": (torch.float64, "sqeuclidean", 2, 75, 5, 64, False),
    "some": (torch.float32, "euclidean", 2, 75, 40, 64, False),  # more than a block holds, by differences
    "many": (torch.float32, "sqeuclidean", 2, 256, 128, 512, False),
    "many tf32": (torch.float32, "euclidean", 2, 256, 128, 512, True),
    "many half": (torch.bfloat16, "cosine", 1, 4096, 1000, 512, False),
    "many double": (torch.float64, "cosine", 2, 75, 40, 640, False),
    "few more": (torch.float32, "euclidean", 2, 75, 5, 64, False),
    "some more": (torch.float32, "euclidean", 2, 75, 40, 64, False),
    "many more": (torch.float32, "sqeuclidean", 2, 256, 128, 512, False),
    "few soft": (torch.float32, "euclidean", 2, 75, 5, 64, False),
    "some soft": (torch.float32, "cosine", 2, 75, 40, 64, False),
    "many soft": (torch.bfloat16, "sqeuclidean", 2, 256, 128, 512, False),
}
# the same of convolutions: dtype, T, images, input channels, pixels of a side, output channels, stride, whether TF32 is allowed
CONVOLUTIONS = {
    "conv": (torch.float32, 2, 25, 64, 28, 64, 1, False),
    "conv tf32": (torch.float32, 2, 25, 64, 28, 64, 1, True),
    "conv half": (torch.bfloat16, 2, 25, 64, 28, 64, 1, False),
    "conv double": (torch.float64, 2, 25, 64, 28, 64, 1, False),
    "conv strided": (torch.float32, 2, 25, 64, 28, 64, 2, False),
}
# the shapes whose products tensor cores make: those that may be rounded, and float64, which is not; those of "many" torch makes
TENSOR_CORES = ("conv tf32", "conv half", "conv double")


@dataclass
class Launch:
    """A kernel of an op's forward or backward at a shape, and what it is launched with."""

    op: str
    shape: str
    kernel: Any
    args: tuple[Any, ...]
    options: dict[str, Any]


@dataclass
class Judged:
    op: str
    shape: str
    code: Code
    lines: list[Line]  # where it accesses global memory; for sm_90 alone
    waves: int | None  # that a SIMD holds by registers alone, as LLVM says; for AMD


@contextmanager
def compiler() -> Iterator[None]:
    """Here triton and fastmeta.kernels are imported anew, for the compiler: a kernel, and Triton's own library, is made for the
    interpreter or for the compiler when it is imported. What comes from here must not be used after."""

    def imported():
        ours = ("triton", "fastmeta.kernels", "gates.planted_triton")
        names = [n for n in sys.modules if n.startswith(tuple(f"{o}." for o in ours)) or n in ours]
        return {n: sys.modules[n] for n in names if not n.startswith("triton._C")}  # native code is there once

    before, interpret = imported(), os.environ.pop("TRITON_INTERPRET", None)
    kernels = getattr(fastmeta, "kernels", None)
    for name in before:
        del sys.modules[name]
    try:
        yield
    finally:
        for name, module in imported().items():
            del sys.modules[name]
            vars(module).clear()  # nothing else ends them: the native code would tell of leaks
        sys.modules |= before
        if kernels:
            fastmeta.kernels = kernels
        if interpret:
            os.environ["TRITON_INTERPRET"] = interpret


def run(shape: str, op: str, small: bool = False, **sizes: int) -> None:
    """The launchers of `op` at `shape`, forward then backward, with all gradients; `small`: a few blocks of the same form;
    `sizes`: T, Q, N or D instead of the shape's (Q: images of a convolution)."""
    if shape in CONVOLUTIONS:
        return run_convolution(shape, small, **sizes)
    dtype, metric, T, Q, N, D, tf32 = SHAPES[shape]
    if small:
        Q, N, D = min(Q, 36), N if by_products(shape) else min(N, 36), D if by_products(shape) else min(D, 128)
    T, Q, N, D = (sizes.get(name, size) for name, size in (("T", T), ("Q", Q), ("N", N), ("D", D)))
    ways = 5
    query, columns = torch.randn(T, Q, D).to(dtype), torch.randn(T, N, D).to(dtype)
    targets, labels = torch.arange(Q).expand(T, Q) % N, torch.arange(N).expand(T, N) % ways
    weights = [torch.randn(size).to(dtype) for size in ((D, D), (D,), (N, D), (N,))]
    of_tasks = [w.expand(T, *w.shape) for w in weights]
    squares = [w.square() for w in of_tasks]
    soft, more = shape.endswith(" soft"), shape.endswith(" more")
    bias, smoothing = (columns[..., 0], 0.1) if soft or more else (None, 0.0)
    exclude = torch.full_like(targets, -1) if soft else None
    targets = torch.ones(T, Q, N, dtype=dtype) if soft else targets
    inputs, static = {
        "prototypes": ((columns, labels), (ways,)),
        "proto_log_softmax": ((query, columns, 1.0), (metric,)),
        "proto_loss": (
            (query, columns, targets, 1.0, exclude, None, bias, labels if more else None),
            (metric, -100, "mean", 0.0, smoothing, soft),
        ),
        "matching_log_probs": ((query, columns, labels, 1.0), (ways, metric)),
        "sgd_step": ((weights, of_tasks, weights), ()),  # one rate for each number
        "momentum_step": ((weights, of_tasks, of_tasks, weights, []), (0.9, 0.1, True)),
        "adam_step": ((weights, of_tasks, of_tasks, squares, weights, 3.0, []), (0.9, 0.999, 0.1, 1e-8)),
    }[op]
    module = importlib.import_module(f"fastmeta.kernels.{op}")
    tensors = [x for some in inputs for x in (some if isinstance(some, list) else [some])]
    needs = tuple(isinstance(x, torch.Tensor) and x.is_floating_point() for x in tensors)
    tiles = importlib.import_module("fastmeta.kernels._tiles")
    products = 0 if small and by_products(shape) else tiles.PRODUCTS
    with tf32_allowed(tf32), mock.patch.object(tiles, "PRODUCTS", products):
        outputs, saved = getattr(module, f"{op}_fwd")(*inputs, *static, needs)
        getattr(module, f"{op}_bwd")(outputs, saved, *inputs, *static, needs)


def by_products(shape: str) -> bool:
    """Whether torch makes the products of distances, that is of all but float64's few."""
    return shape.startswith("many") and shape != "many double"


def run_convolution(shape: str, small: bool, **sizes: int) -> None:
    from fastmeta.kernels.task_conv2d import task_conv2d_bwd, task_conv2d_fwd

    dtype, T, n, C, side, E, stride, tf32 = CONVOLUTIONS[shape]
    T, n = (1, 1) if small else (sizes.get("T", T), sizes.get("Q", n))
    shapes = (T, n, C, side, side), (T, E, C, 3, 3), (T, E)
    inputs, needs = (*(torch.randn(of).to(dtype) for of in shapes), stride, 1), (True, True, True)
    with tf32_allowed(tf32):
        outputs, saved = task_conv2d_fwd(*inputs, needs)
        task_conv2d_bwd(outputs, saved, *inputs, needs)


def recorded(shape: str, ops: Iterable[str], **sizes: int) -> list[Launch]:
    """The launches of `ops` at `shape`, or of `sizes`; in the body of `compiler`, whose modules are not used again."""
    found: list[Launch] = []
    for op in ops:

        def record(kernel, programs, like, *args, op=op, **options):
            found.append(Launch(op, shape, kernel, args, options))

        for module in (op, "_distance_bwd", "_loss_sums", "_products", "_products_bwd", "_optimiser_launch"):
            importlib.import_module(f"fastmeta.kernels.{module}").launch = record
        run(shape, op, **sizes)
    return found


def compilations(shape: str, ops: Iterable[str], calls: Iterable[Mapping[str, int]]) -> list[tuple[str, set[str]]]:
    """For each launch of ops, its kernel and what Triton compiles over calls of these sizes; in the body of `compiler`."""
    launches = zip(*(recorded(shape, ops, **sizes) for sizes in calls), strict=True)
    return [(same[0].kernel.__name__, {Bound(launch, "90").key for launch in same}) for same in launches]


class Bound:
    """What Triton itself, told of a GPU, makes of a launch's arguments."""

    def __init__(self, launch: Launch, arch: str):
        from triton.backends.compiler import GPUTarget
        from triton.compiler import make_backend
        from triton.runtime.jit import create_function_from_signature

        from fastmeta.kernels._launch import compiler_options

        amd, kernel = not arch.isdigit(), launch.kernel
        self.target = GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", int(arch), 32)
        given = launch.options | compiler_options(launch.options["num_warps"], amd)
        backend = make_backend(self.target)
        binder = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, options = binder(*launch.args, **given)
        self.key = repr((specialization, options))  # of another one Triton compiles the kernel anew
        self.packed = kernel._pack_args(backend, given, bound, specialization, options)
        self.kernel = kernel

    def compiled(self) -> Any:
        import triton
        from triton.compiler import ASTSource

        options, signature, constants, attributes = self.packed
        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=self.target, options=options.__dict__)


def judged(launch: Launch, arch: str, accessed: Mapping[tuple[str, str], triton_requests.Recorded]) -> Judged:
    """The kernel of a launch on an architecture; `accessed`: what interpreted kernels did, by op and shape."""
    amd, made = not arch.isdigit(), Bound(launch, arch).compiled()
    (code,) = (
        machine_code.of_amdgcn(made.asm["amdgcn"], arch) if amd else machine_code.of_cubin(made.asm["cubin"], arch)
    )
    code.shared += made.metadata.shared
    addresses = accessed.get((launch.op, launch.shape)) if arch == "90" else None
    lines = triton_requests.lines_of(code.kernel, made.asm["ttgir"], addresses) if addresses else []
    waves = int(made.asm["amdgcn"].split("; Occupancy: ")[1].split()[0]) if amd else None
    return Judged(launch.op, launch.shape, code, lines, waves)


def judged_runs(
    runs: Iterable[tuple[str, Iterable[str], Iterable[str]]],
    accessed: Mapping[tuple[str, str], triton_requests.Recorded],
    others: Iterable[Launch] = (),
) -> list[Judged]:
    """`others` and the launches of runs: a shape, architectures, ops. In the body of `compiler`."""
    pairs = [(x, arch) for x in others for arch in ("90", "gfx942")]
    pairs += [(x, arch) for shape, arches, ops in runs for x in recorded(shape, ops) for arch in arches]
    parse, turn = ast.parse, threading.Lock()

    def parse_alone(*args: Any, **options: Any) -> ast.AST:
        """Python 3.11's counts its depth for all threads together: two at once raise SystemError."""
        with turn:
            return parse(*args, **options)

    with mock.patch("ast.parse", parse_alone), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda pair: judged(*pair, accessed), pairs))


def accessed_by(runs: Mapping[str, Iterable[str]]) -> dict[tuple[str, str], triton_requests.Recorded]:
    """The addresses that the interpreted kernels of ops reach, by op and shape."""
    found = {}
    for shape, ops in runs.items():
        for op in ops:
            with triton_requests.addresses() as found[op, shape]:
                run(shape, op, small=True)
    return found

"""Compiles the Triton kernels for GPUs that are not here and prints, as JSON, what their machine code holds. Run by
test_triton_gates.py as a process of its own: Triton's library, once imported for the interpreter, does not compile.

Each launcher is called with its `launch` replaced by one that records the kernel and its arguments, so that what is compiled is
specialised as on a GPU: integers and pointers divisible by 16, integers that are 1, absent tensors.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
import triton
import triton.language as tl
from fastmeta.kernels import _launch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_.a-z]*)", re.M)
TYPES = {torch.int32: "i32", torch.int64: "i64"} | {
    getattr(torch, f"{long}{bits}"): f"{short}{bits}"
    for long, short, bits in (("float", "fp", 64), ("float", "fp", 32), ("float", "fp", 16), ("bfloat", "bf", 16))
}
# name of a case: dtype, metric, T, Q, N, D, whether TF32 is allowed
SHAPES = {
    "few": (torch.float32, "euclidean", 32, 75, 5, 64, False),
    "few half": (torch.float16, "cosine", 8, 300, 20, 640, False),
    "many double": (torch.float64, "cosine", 8, 300, 40, 640, False),
    "many": (torch.float32, "sqeuclidean", 4, 256, 128, 512, False),
    "many tf32": (torch.float32, "euclidean", 4, 256, 128, 512, True),
    "many half": (torch.bfloat16, "cosine", 1, 16384, 1000, 512, False),
}


@triton.jit
def _spilling_kernel(x, out, BLOCK: tl.constexpr):
    """4 warps hold [128, 128] twice."""
    i = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    a = tl.load(x + i)
    b = tl.load(x + BLOCK * BLOCK + i)
    tl.debug_barrier()
    for _ in range(9):
        a, b = b * a + 1, a * a + b
    tl.store(out + i, a + tl.sum(b, 0)[None, :])


def recorded(shape, ops):
    """The launches of `ops` at `shape`."""
    dtype, metric, T, Q, N, D, torch.backends.cuda.matmul.allow_tf32 = SHAPES[shape]
    query, columns = torch.zeros(T, Q, D, dtype=dtype), torch.zeros(T, N, D, dtype=dtype)
    targets, labels = torch.zeros(T, Q, dtype=torch.int64), torch.zeros(T, N, dtype=torch.int64)
    calls = {
        "prototypes": ((columns, labels), (5,)),
        "proto_log_softmax": ((query, columns, 1.0), (metric,)),
        "proto_loss": ((query, columns, targets, 1.0), (metric, -100, "mean")),
        "matching_log_probs": ((query, columns, labels, 1.0), (5, metric)),
    }
    found = []

    def record(kernel, programs, like, *args, **options):
        found.append((kernel, args, options))

    for op in ops:
        inputs, static = calls[op]
        module = importlib.import_module(f"fastmeta.kernels.{op}")
        gradients = importlib.import_module("fastmeta.kernels._distance_bwd")
        module.launch = gradients.launch = record
        needs = tuple(isinstance(x, torch.Tensor) and x.is_floating_point() for x in inputs)
        outputs, saved = getattr(module, f"{op}_fwd")(*inputs, *static, needs)
        getattr(module, f"{op}_bwd")(outputs, saved, *inputs, *static, needs)
    return found


def source(kernel, args, options):
    """What the launch would compile."""
    signature, constants, attributes = {}, {}, {}
    values = dict(zip(kernel.arg_names, args, strict=False)) | {
        k: v for k, v in options.items() if k in kernel.arg_names
    }
    for i, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        value = values[name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name], constants[i,] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[i,] = f"*{TYPES[value.dtype]}", [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp64"
        else:
            signature[name] = "i32"
            attributes |= {(i,): [["tt.divisibility", 16]]} if value % 16 == 0 else {}
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def report(kernel, args, options, arch):
    amd = isinstance(arch, str)
    target = GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", arch, 32)
    warps = {"num_warps": min(options["num_warps"], 4 if amd else 8)}  # as _tiles.EIGHT_WARPS
    compiled = triton.compile(
        source(kernel, args, options), target=target, options=warps | ({} if amd else _launch.COMPILER)
    )
    if amd:
        text = compiled.asm["amdgcn"]
        return {
            "registers": int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1]),
            "spilled": int(re.search(r"\.private_segment_fixed_size:\s+(\d+)", text)[1]),
            "wide_loads": len(re.findall(r"(?:global|buffer)_load_(?:dwordx4|b128)", text)),
            "tensor_core": len(re.findall("v_mfma", text)),
        }
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([CUOBJDUMP, flag, file.name], check=True, capture_output=True, text=True).stdout
            for flag in ("--dump-resource-usage", "-sass")
        )
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage).groups())
    instructions = Counter(INSTRUCTION.findall(sass))

    def count(pattern):
        return sum(n for name, n in instructions.items() if re.search(pattern, name))

    return {
        "registers": registers,
        "spilled": stack + local + count("^(STL|LDL)"),
        "wide_loads": count(r"^LDG(STS)?\..*128|^UTMA|^UBLKCP"),
        "tensor_core": count(r"^(H|HG|QG)MMA|^UTC\w*MMA"),
    }


if __name__ == "__main__":
    planted = torch.zeros(1), torch.zeros(1)
    options = {"BLOCK": 128, "num_warps": 4}
    out = [["planted", 90, "_spilling_kernel", report(_spilling_kernel, planted, options, 90)]]
    for shape, arch, *ops in (run.split("@") for run in sys.argv[1:]):
        arch = int(arch) if arch.isdigit() else arch
        for kernel, args, options in recorded(shape, ops):
            out.append([shape, arch, kernel.fn.__name__, report(kernel, args, options, arch)])
    print(json.dumps(out))

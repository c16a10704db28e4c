"""Triton kernels with planted faults, for the tests of the gates."""

import triton
import triton.language as tl


@triton.jit
def spills(x, out, BLOCK: tl.constexpr):
    """4 warps hold [BLOCK, BLOCK] twice: more than their registers for 128."""
    i = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    a = tl.load(x + i)
    b = tl.load(x + BLOCK * BLOCK + i)
    tl.debug_barrier()
    for _ in range(9):
        a, b = b * a + 1, a * a + b
    tl.store(out + i, a + tl.sum(b, 0)[None, :])


@triton.jit
def strided_loop(x, out, n, BLOCK: tl.constexpr):
    """Each lane walks a row of its own."""
    i = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(0, n):
        total += tl.load(x + i * n + k)
    tl.store(out + i, total)


@triton.jit
def whole_rows(x, out, n, BLOCK: tl.constexpr):
    """Neighbouring lanes load neighbouring numbers."""
    i = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(0, n):
        total += tl.load(x + k * BLOCK + i)
    tl.store(out + i, total)

"""c_k = mean of the support examples of class k.

Forward: a program owns one class of a task and BLOCK_D features; it reads all labels of the task and of the support
only the rows of its class, BLOCK_S at a time. Moved: each support element once, the prototypes once, 8 S bytes of
labels a program (from cache).
Backward: a program owns BLOCK_S examples by BLOCK_D features and gathers the gradient of each one's class.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._distance import divide
from ._launch import accumulator, dense, launch, power_of_two, task_rows, triton_dtype


@triton.jit(do_not_specialize=("support_stride", "S", "N"))
def _prototypes_fwd_kernel(
    support,
    labels,
    prototypes,
    counts,
    support_stride,
    S,
    N,
    D,
    dtype: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    d_blocks = tl.cdiv(D, BLOCK_D)
    d_block = tl.program_id(0) % d_blocks
    index = (tl.program_id(0) // d_blocks).to(tl.int64)  # task * N + k
    task, k = index // N, index % N
    d = d_block * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_S, BLOCK_D), dtype)
    count = tl.zeros((BLOCK_S,), dtype)
    for start in tl.range(0, S, BLOCK_S, num_stages=3):
        s = start + tl.arange(0, BLOCK_S)
        label = tl.load(labels + task * S + s, s < S, N)
        member = (label == k) & (s < S)
        rows = support + (task * support_stride + s[:, None]) * D + d[None, :]
        total += tl.load(rows, member[:, None] & (d[None, :] < D), 0.0).to(dtype)
        outside = (s < S) & ((label < 0) | (label >= N))
        count += tl.where(outside, float("nan"), tl.where(member, 1.0, 0.0))  # NaN for the whole task
    members = tl.sum(count, 0)
    mean = divide(tl.sum(total, 0), members)
    tl.store(prototypes + index * D + d, mean.to(prototypes.dtype.element_ty), d < D)
    if counts is not None:
        tl.store(counts + index, members, d_block == 0)


def prototypes_fwd(
    support: Tensor, labels: Tensor, num_classes: int, needs: tuple[bool, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    examples, features = support.shape[-2:]
    out = support.new_empty(*support.shape[:-2], num_classes, features)
    counts = out.new_empty(out.shape[:-1], dtype=accumulator(support)) if any(needs) else None
    if examples == 0:  # as a sum of nothing in PyTorch
        out.zero_()
    x, block_d = dense(support, 2), power_of_two(features, 16, 64)
    launch(
        _prototypes_fwd_kernel,
        (x.shape[0] * num_classes if examples else 0) * triton.cdiv(features, block_d),
        support,
        support=x,
        labels=labels.contiguous(),
        prototypes=out,
        counts=counts,
        support_stride=task_rows(x),
        S=examples,
        N=num_classes,
        D=features,
        dtype=triton_dtype(support),
        BLOCK_S=power_of_two(examples, 8, 32 if support.element_size() <= 4 else 16),
        BLOCK_D=block_d,
        num_warps=4,
    )
    return (out,), () if counts is None else (counts,)


@triton.jit(do_not_specialize=("S", "N"))
def _prototypes_bwd_kernel(
    dprototypes,
    labels,
    counts,
    dsupport,
    S,
    N,
    D,
    dtype: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    d_blocks = tl.cdiv(D, BLOCK_D)
    s_blocks = tl.cdiv(S, BLOCK_S)
    d = (tl.program_id(0) % d_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    index = tl.program_id(0) // d_blocks
    s = (index % s_blocks) * BLOCK_S + tl.arange(0, BLOCK_S)
    task = (index // s_blocks).to(tl.int64)
    label = tl.load(labels + task * S + s, s < S, 0)
    label = tl.where((label >= 0) & (label < N), label, 0)
    undefined = tl.zeros((BLOCK_N,), dtype)
    for start in range(0, N, BLOCK_N):  # NaN where a class is empty or a label out of range, as in the reference
        n = start + tl.arange(0, BLOCK_N)
        undefined += divide(tl.zeros((BLOCK_N,), dtype), tl.load(counts + task * N + n, n < N, 1.0))
    count = tl.load(counts + task * N + label) + tl.sum(undefined, 0)
    inside = (s[:, None] < S) & (d[None, :] < D)
    rows = dprototypes + (task * N + label[:, None]) * D + d[None, :]
    dx = divide(tl.load(rows, inside, 0.0).to(dtype), count[:, None])
    out = dsupport + (task * S + s[:, None]) * D + d[None, :]
    tl.store(out, dx.to(dsupport.dtype.element_ty), inside)


def prototypes_bwd(
    cotangents: tuple[Tensor, ...],
    saved: tuple[Tensor, ...],
    support: Tensor,
    labels: Tensor,
    num_classes: int,
    needs: tuple[bool, ...],
) -> tuple[Tensor, ...]:
    (counts,) = saved or prototypes_fwd(support, labels, num_classes, needs)[1]
    examples, features = support.shape[-2:]
    if num_classes == 0:
        return (torch.zeros_like(support),)
    dsupport = torch.empty(support.shape, dtype=support.dtype, device=support.device)
    tasks = support.shape[0] if support.ndim == 3 else 1
    block_s, block_d = power_of_two(examples, 8, 32), power_of_two(features, 16, 64)
    launch(
        _prototypes_bwd_kernel,
        tasks * triton.cdiv(examples, block_s) * triton.cdiv(features, block_d),
        support,
        dprototypes=cotangents[0].contiguous(),
        labels=labels.contiguous(),
        counts=counts,
        dsupport=dsupport,
        S=examples,
        N=num_classes,
        D=features,
        dtype=triton_dtype(support),
        BLOCK_S=block_s,
        BLOCK_N=power_of_two(num_classes, 1, 128),
        BLOCK_D=block_d,
        num_warps=4,
    )
    return (dsupport,)

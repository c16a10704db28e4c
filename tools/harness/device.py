"""The device of the tests' tensors: FASTMETA_DEVICE, or CUDA where there is one. On a CPU Triton's kernels run in its interpreter."""

import os
from contextlib import contextmanager

import torch

DEVICE = os.environ.get("FASTMETA_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic products ask for
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton


@contextmanager
def tf32_allowed(allowed: bool):
    """Whether products, of matrices and in convolutions, may be in TF32 for the body."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before

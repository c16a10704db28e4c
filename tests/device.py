"""The device of the tests' tensors: FASTMETA_DEVICE, or CUDA where there is one. On a CPU Triton's kernels run in its interpreter."""

import os
from contextlib import contextmanager

import torch

DEVICE = os.environ.get("FASTMETA_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic products ask for
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

CPU_MODULES = {  # of what is nowhere else: the build, the emulated kernels, the native threads, files, processes
    "test_build",
    "test_cuda_gates",
    "test_data_arguments",
    "test_data_broken_archives",
    "test_data_damage",
    "test_data_episodes",
    "test_data_glyphs",
    "test_data_glyphs_cache",
    "test_data_omniglot",
    "test_data_sinusoid",
    "test_data_task_sampler",
    "test_distributed",
    "test_emulated_launchers",
    "test_emulated_launches",
    "test_emulated_nonfinite",
    "test_emulation",
    "test_examples",
    "test_gpu_acceptance",
    "test_gpu_model",
    "test_gpu_report",
    "test_layout",
    "test_mlp_threads",
    "test_occupancy",
    "test_saved_files",
    "test_train",
    "test_train_damage",
    "test_train_states",
    "test_triton_gates",
}


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

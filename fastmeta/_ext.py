"""The native kernels, `fastmeta._C`, tied to this process's torch: its tensors and its pool of threads."""

from __future__ import annotations

import os

import torch

from fastmeta import _C
from fastmeta._C import *  # noqa: F403  (the kernels, by name)

# FASTMETA_DLPACK=0 views tensors through Python attributes, as on a torch without the exchange table.
_C.init_tensor(torch.Tensor, os.environ.get("FASTMETA_DLPACK") != "0")
openmp = _C.init_parallel(os.path.dirname(torch.__file__))

"""PyTorch's private names that fastmeta uses, looked for when it is imported: a torch without one is refused by its version."""

import torch

TESTED = "2.13"  # what CI runs
NAMES = (
    "_C.DispatchKey",
    "_C._AutoDispatchBelowAutograd",
    "_C._ForceDispatchKeyGuard",
    "_C._any_requires_grad",
    "_C._are_functorch_transforms_active",
    "_C._dispatch_tls_local_exclude_set",
    "_C._dispatch_tls_local_include_set",
    "_C._functorch.TransformType",
    "_C._functorch._is_vmap_fallback_enabled",
    "_C._functorch._set_vmap_fallback_enabled",
    "_C._functorch.get_interpreter_stack",
    "_C._functorch.is_batchedtensor",
    "_C._functorch.is_legacy_batchedtensor",
    "_C._len_torch_dispatch_stack",
    "autograd.forward_ad._current_level",
)


def check() -> None:
    """ImportError that names the version where torch lacks one of NAMES."""
    for name in NAMES:
        found: object = torch
        for part in name.split("."):
            if not hasattr(found, part):
                raise ImportError(
                    f"fastmeta: torch must have torch.{name}, which fastmeta uses, got torch {torch.__version__} without it; "
                    f"torch {TESTED} is what fastmeta is tested with"
                )
            found = getattr(found, part)


check()

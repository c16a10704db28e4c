"""PyTorch's private names that fastmeta uses, looked for when it is imported: a torch without one is refused by its version.
And what a call is under, as they tell."""

import torch
from torch.autograd import forward_ad

TESTED = "2.13"  # what CI runs
NAMES = (
    "_C.DisableTorchFunctionSubclass",
    "_C.DispatchKey",
    "_C._AutoDispatchBelowAutograd",
    "_C._ForceDispatchKeyGuard",
    "_C._any_requires_grad",
    "_C._are_functorch_transforms_active",
    "_C._disabled_torch_dispatch_impl",
    "_C._dispatch_tls_local_exclude_set",
    "_C._dispatch_tls_local_include_set",
    "_C._functorch.TransformType",
    "_C._functorch._is_vmap_fallback_enabled",
    "_C._functorch._set_vmap_fallback_enabled",
    "_C._functorch.get_interpreter_stack",
    "_C._functorch.is_batchedtensor",
    "_C._functorch.is_legacy_batchedtensor",
    "_C._is_tracing",
    "_C._len_torch_dispatch_stack",
    "_efficientzerotensor",
    "_has_compatible_shallow_copy_type",
    "_neg_view",
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

transforms_active = torch._C._are_functorch_transforms_active  # of torch.func
any_requires_grad = torch._C._any_requires_grad
is_recorded = torch._C._is_tracing  # by torch.jit.trace
is_batched = torch._C._functorch.is_legacy_batchedtensor  # a cotangent of is_grads_batched=True; no transform is active


Transform = torch._C._functorch.TransformType


def transforms() -> list[object]:
    """The kinds of the active transforms of torch.func, outermost first."""
    return [interpreter.key() for interpreter in torch._C._functorch.get_interpreter_stack()]


def is_forward_mode() -> bool:
    return forward_ad._current_level >= 0


def is_functional() -> bool:
    """Whether torch.func or forward-mode AD is at work."""
    return transforms_active() or forward_ad._current_level >= 0


def is_traced() -> bool:
    """Whether torch.compile, torch.export or a TorchDispatchMode sees each operation."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def is_looked_at() -> bool:
    """Whether a call is traced or transformed, so that the values of its tensors must not be looked at."""
    return (
        torch.compiler.is_compiling()
        or transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or is_recorded()
    )


def is_plain() -> bool:
    """Whether there is nothing of all this."""
    return not (is_looked_at() or forward_ad._current_level >= 0)

"""PyTorch's private names that fastmeta uses, under names that say what for. They are looked for when it is imported: a torch without
one is refused by its version. And what a call is under, as they tell."""

import contextlib
import functools
import operator
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils import _python_dispatch, _pytree

TESTED = "2.13"  # what CI runs
NAMES = (
    "_C.DisableTorchFunctionSubclass",
    "_C.DispatchKey",
    "_C._AutoDispatchBelowAutograd",
    "_C._ForceDispatchKeyGuard",
    "_C._FunctionBase._sequence_nr",
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
    "_C._functions.AccumulateGrad",
    "_C._get_fp32_precision_getter",
    "_C._is_tracing",
    "_C._len_torch_dispatch_stack",
    "Tensor._backward_hooks",
    "Tensor._is_zerotensor",
    "Tensor._post_accumulate_grad_hooks",
    "_efficientzerotensor",
    "_foreach_add",
    "_foreach_add_",
    "_foreach_copy_",
    "_fused_adam_",
    "_has_compatible_shallow_copy_type",
    "_neg_view",
    "autograd.forward_ad._current_level",
    "nn.modules.batchnorm._BatchNorm",
    "nn.modules.batchnorm._NormBase",
    "nn.modules.conv._ConvNd",
    "nn.modules.module._global_backward_hooks",
    "nn.modules.module._global_backward_pre_hooks",
    "nn.modules.module._global_forward_hooks",
    "nn.modules.module._global_forward_pre_hooks",
    "optim.Optimizer.profile_hook_step",
    "optim.optimizer._global_optimizer_post_hooks",
    "optim.optimizer._global_optimizer_pre_hooks",
    "utils._python_dispatch.TorchDispatchMode",
    "utils._pytree.tree_flatten",
    "utils._pytree.tree_leaves",
    "utils._pytree.tree_map",
    "utils._pytree.tree_map_only",
    "utils._pytree.tree_unflatten",
)
# What a module keeps, by its attributes.
CHILDREN, PARAMETERS, BUFFERS = "_modules", "_parameters", "_buffers"
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
COMPILED_CALL = "_compiled_call_impl"  # what a module runs in the place of its own call
HOOK_ENDINGS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")  # how the names of its dicts of hooks end


def check() -> None:
    """ImportError that names the version where torch lacks one of NAMES."""
    for name in NAMES:
        found: object = torch
        parts = name.split(".")
        for i, part in enumerate(parts, 1):
            module = sys.modules.get(".".join(["torch", *parts[:i]]))  # torch.optim hides one of its own
            if not hasattr(found, part) and module is None:
                raise ImportError(
                    f"fastmeta: torch must have torch.{name}, which fastmeta uses, got torch {torch.__version__} without it; "
                    f"torch {TESTED} is what fastmeta is tested with"
                )
            found = getattr(found, part, module)
    for name in (CHILDREN, PARAMETERS, BUFFERS, COMPILED_CALL, *HOOKS):
        if not hasattr(nn.Module(), name):
            raise ImportError(
                f"fastmeta: a module must have {name}, which fastmeta uses, got torch {torch.__version__} without it; "
                f"torch {TESTED} is what fastmeta is tested with"
            )


check()

transforms_active = torch._C._are_functorch_transforms_active  # of torch.func
any_requires_grad = torch._C._any_requires_grad
foreach_add, foreach_copy_ = torch._foreach_add, torch._foreach_copy_  # of lists of tensors
is_recorded = torch._C._is_tracing  # by torch.jit.trace
is_batched_cotangent = torch._C._functorch.is_legacy_batchedtensor  # of is_grads_batched=True; no transform is active
is_of_vmap = torch._C._functorch.is_batchedtensor  # a tensor inside torch.vmap that has its axis

_functions: Any = torch._C._functions
LeafNode = _functions.AccumulateGrad  # where a graph ends in a leaf, its `variable`

DispatchMode = _python_dispatch.TorchDispatchMode
dispatch_modes = torch._C._len_torch_dispatch_stack  # how many are entered


def number_of_node(node: Any) -> int:
    """Of two nodes that one thread made, the later has the higher."""
    found: int = node._sequence_nr()
    return found


NO_DISPATCH = torch._C._disabled_torch_dispatch_impl  # of a class whose tensors have their values in their own memory
is_zeros = Tensor._is_zerotensor  # zeros without memory
takes_data_of = torch._has_compatible_shallow_copy_type  # whether x.data = y keeps x
# What torch.vmap hides of a tensor: its place in autograd's graph.
_tensor: Any = Tensor
GRAPH_QUESTIONS = (
    _tensor.requires_grad.__get__, _tensor.grad_fn.__get__, _tensor.is_leaf.__get__,
    _tensor.register_hook, _tensor.retain_grad,
)  # fmt: skip

below_autograd = torch._C._AutoDispatchBelowAutograd  # a context
without_subclasses = torch._C.DisableTorchFunctionSubclass  # a context

AnyNorm = nn.modules.batchnorm._NormBase  # batch and instance norm
AnyBatchNorm = nn.modules.batchnorm._BatchNorm
AnyConv = nn.modules.conv._ConvNd
_modules: Any = nn.modules.module
GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    _modules._global_forward_hooks,
    _modules._global_forward_pre_hooks,
    _modules._global_backward_hooks,
    _modules._global_backward_pre_hooks,
)

fp32_precision: Any = torch._C._get_fp32_precision_getter  # what torch.backends.cuda.matmul.fp32_precision asks
fused_adam: Any = torch._fused_adam_
_optimiser: Any = sys.modules["torch.optim.optimizer"]
OPTIMISER_HOOKS: tuple[dict[int, Any], ...] = (
    _optimiser._global_optimizer_pre_hooks,
    _optimiser._global_optimizer_post_hooks,
)
_adam_step: Any = torch.optim.Adam.step
# torch.optim.Adam's, with the hooks of the optimiser; torch wraps it when the first Adam is made.
torchs_step = (
    _adam_step if getattr(_adam_step, "hooked", False) else torch.optim.Optimizer.profile_hook_step(_adam_step)
)

tree_flatten, tree_leaves = _pytree.tree_flatten, _pytree.tree_leaves
tree_map, tree_map_only, tree_unflatten = _pytree.tree_map, _pytree.tree_map_only, _pytree.tree_unflatten

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


@contextlib.contextmanager
def without_slow_vmap() -> Iterator[None]:
    """An operator without a rule for torch.vmap raises, instead of running in a loop of vmap's own."""
    functorch: Any = torch._C._functorch
    allowed = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(allowed)


def at_top_level() -> contextlib.AbstractContextManager[None]:
    """A node runs below autograd, under a dispatch mode below torch.func too; a reference's derivatives need both."""
    keys = torch._C.DispatchKey
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in (
        keys.AutogradOther, keys.AutogradFunctionality, keys.ADInplaceOrView, keys.PythonTLSSnapshot,
        keys.FuncTorchDynamicLayerFrontMode, keys.FuncTorchDynamicLayerBackMode,
        keys.FuncTorchGradWrapper, keys.FuncTorchBatched, keys.FuncTorchVmapMode,
    ):  # fmt: skip
        excluded = excluded.remove(key)
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded)


def lazy_tensors() -> list[Tensor]:
    """One of each kind by its dispatch keys: plain, without memory, a negation left for later, zeros left for later."""
    plain = torch.empty(1, device="cpu")
    return [plain, plain.to("meta"), torch._neg_view(plain), torch._efficientzerotensor((1,), device="cpu")]


def keys_and_addresses(tensors: list[Tensor], names: tuple[str, ...]) -> tuple[list[int], int, list[int]] | None:
    """The dispatch keys of the tensors, those of `names`, and where the C++ objects of the tensors lie; None where torch does not tell."""
    private: Any = torch._C
    try:
        keys = [private._dispatch_keys(x).raw_repr() for x in tensors]
        kinds = [private.DispatchKeySet(getattr(private.DispatchKey, name)).raw_repr() for name in names]
        return keys, functools.reduce(operator.or_, kinds), [x._cdata for x in tensors]
    except AttributeError:
        return None


def has_gradient_hooks(p: Tensor) -> bool:
    """Whether autograd calls somebody when it has a gradient to `p`."""
    return bool(p._backward_hooks) or bool(p._post_accumulate_grad_hooks)


def accumulate(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Adds to `.grad` of each leaf its gradient, as autograd does. The gradients are given away."""
    old, new = [], []
    for leaf, gradient in pairs:
        if leaf.grad is None:
            leaf.grad = gradient
        else:
            old.append(leaf.grad)
            new.append(gradient)
    if old:
        with torch.no_grad():
            torch._foreach_add_(old, new)

"""fastmeta._C, the native kernels; csrc/ops.h has the conventions of `<op>_fwd` and `<op>_bwd`. Arguments are positional."""

from typing import Any

max_layers: int
max_convs: int
most_padding: int
most_pool: int

def init_tensor(tensor_class: Any, dlpack: bool, /) -> None: ...
def describe(flat: Any, /) -> tuple[Any, list[Any]] | None: ...
def give_outputs(outs: Any, inputs: Any, /) -> None: ...
def init_values(in_memory: Any, impl: int, keys: int, plain: int, /) -> None: ...
def init_parallel(torch_folder: str, /) -> str: ...
def num_threads() -> int: ...
def build_info() -> dict[str, str | None]: ...
def cuda_ops() -> list[str]: ...
def isa() -> str: ...
def isas() -> list[str]: ...
def set_isa(name: str, /) -> None: ...
def label_out_of_range(labels: Any, num_classes: int, ignore_index: int | None, /) -> int | None: ...
def empty_class(labels: Any, num_classes: int, /) -> tuple[int, int] | None: ...
def prototypes_fwd(support: Any, labels: Any, num_classes: int, needs: Any, /) -> tuple[Any, ...] | str: ...
def prototypes_bwd(
    cotangents: Any, saved: Any, support: Any, labels: Any, num_classes: int, needs: Any, /
) -> tuple[Any, ...]: ...
def proto_log_softmax_fwd(
    query: Any, prototypes: Any, temperature: Any, metric: str, needs: Any, /
) -> tuple[Any, ...] | str: ...
def proto_log_softmax_bwd(
    cotangents: Any, saved: Any, query: Any, prototypes: Any, temperature: Any, metric: str, needs: Any, /
) -> tuple[Any, ...]: ...
def proto_loss_fwd(
    query: Any,
    prototypes: Any,
    targets: Any,
    temperature: Any,
    exclude: Any,
    target_distance: Any,
    bias: Any,
    classes: Any,
    metric: str,
    ignore_index: int,
    reduction: str,
    margin: float,
    smoothing: float,
    counts_hits: bool,
    needs: Any,
    /,
) -> tuple[Any, ...] | str: ...
def proto_loss_value_and_grad(
    query: Any,
    prototypes: Any,
    targets: Any,
    temperature: Any,
    exclude: Any,
    target_distance: Any,
    bias: Any,
    classes: Any,
    metric: str,
    ignore_index: int,
    reduction: str,
    margin: float,
    smoothing: float,
    counts_hits: bool,
    needs: Any,
    cotangents: Any,
    /,
) -> tuple[Any, ...] | str: ...
def proto_loss_bwd(
    cotangents: Any,
    saved: Any,
    query: Any,
    prototypes: Any,
    targets: Any,
    temperature: Any,
    exclude: Any,
    target_distance: Any,
    bias: Any,
    classes: Any,
    metric: str,
    ignore_index: int,
    reduction: str,
    margin: float,
    smoothing: float,
    counts_hits: bool,
    needs: Any,
    /,
) -> tuple[Any, ...]: ...
def proto_loss_loo_fwd(
    embeddings: Any, labels: Any, temperature: Any, num_classes: int, metric: str, reduction: str, needs: Any, /
) -> tuple[Any, ...] | str: ...
def proto_loss_loo_bwd(
    cotangents: Any,
    saved: Any,
    embeddings: Any,
    labels: Any,
    temperature: Any,
    num_classes: int,
    metric: str,
    reduction: str,
    needs: Any,
    /,
) -> tuple[Any, ...]: ...
def symmetric_loss_fwd(
    query: Any, keys: Any, temperature: Any, metric: str, needs: Any, /
) -> tuple[Any, ...] | str: ...
def symmetric_loss_bwd(
    cotangents: Any, saved: Any, query: Any, keys: Any, temperature: Any, metric: str, needs: Any, /
) -> tuple[Any, ...]: ...
def matching_log_probs_fwd(
    query: Any, support: Any, labels: Any, temperature: Any, num_classes: int, metric: str, needs: Any, /
) -> tuple[Any, ...] | str: ...
def matching_log_probs_bwd(
    cotangents: Any,
    saved: Any,
    query: Any,
    support: Any,
    labels: Any,
    temperature: Any,
    num_classes: int,
    metric: str,
    needs: Any,
    /,
) -> tuple[Any, ...]: ...
def sgd_step_fwd(params: Any, grads: Any, lr: Any, needs: Any, /) -> tuple[Any, ...] | str: ...
def sgd_step_bwd(cotangents: Any, saved: Any, params: Any, grads: Any, lr: Any, needs: Any, /) -> tuple[Any, ...]: ...
def momentum_step_fwd(
    params: Any,
    grads: Any,
    velocities: Any,
    lr: Any,
    learned: Any,
    momentum: Any,
    weight_decay: Any,
    nesterov: bool,
    needs: Any,
    /,
) -> tuple[Any, ...] | str: ...
def momentum_step_bwd(
    cotangents: Any,
    saved: Any,
    params: Any,
    grads: Any,
    velocities: Any,
    lr: Any,
    learned: Any,
    momentum: Any,
    weight_decay: Any,
    nesterov: bool,
    needs: Any,
    /,
) -> tuple[Any, ...]: ...
def adam_step_fwd(
    params: Any,
    grads: Any,
    means: Any,
    squares: Any,
    lr: Any,
    step: Any,
    learned: Any,
    beta1: Any,
    beta2: Any,
    weight_decay: Any,
    eps: Any,
    needs: Any,
    /,
) -> tuple[Any, ...] | str: ...
def adam_step_bwd(
    cotangents: Any,
    saved: Any,
    params: Any,
    grads: Any,
    means: Any,
    squares: Any,
    lr: Any,
    step: Any,
    learned: Any,
    beta1: Any,
    beta2: Any,
    weight_decay: Any,
    eps: Any,
    needs: Any,
    /,
) -> tuple[Any, ...]: ...
def mlp_forward_fwd(params: Any, inputs: Any, activation: Any, needs: Any, /) -> tuple[Any, ...] | str: ...
def mlp_forward_bwd(
    cotangents: Any, saved: Any, params: Any, inputs: Any, activation: Any, needs: Any, /
) -> tuple[Any, ...]: ...
def mlp_loss_fwd(
    params: Any, inputs: Any, targets: Any, activation: Any, loss: str, needs: Any, /
) -> tuple[Any, ...] | str: ...
def mlp_loss_value_and_grad(
    params: Any, inputs: Any, targets: Any, activation: Any, loss: str, needs: Any, cotangents: Any, /
) -> tuple[Any, ...] | str: ...
def mlp_loss_bwd(
    cotangents: Any, saved: Any, params: Any, inputs: Any, targets: Any, activation: Any, loss: str, needs: Any, /
) -> tuple[Any, ...]: ...
def mlp_grad_fwd(
    params: Any, inputs: Any, targets: Any, activation: Any, loss: str, needs: Any, /
) -> tuple[Any, ...] | str: ...
def mlp_grad_bwd(
    cotangents: Any, saved: Any, params: Any, inputs: Any, targets: Any, activation: Any, loss: str, needs: Any, /
) -> tuple[Any, ...]: ...
def mlp_hvp_fwd(
    params: Any, vectors: Any, inputs: Any, targets: Any, activation: Any, loss: str, curvature: str, needs: Any, /
) -> tuple[Any, ...] | str: ...
def mlp_adapt_fwd(
    params: Any,
    rates: Any,
    inputs: Any,
    targets: Any,
    steps: int,
    activation: Any,
    loss: str,
    first_order: bool,
    inner: Any,
    needs: Any,
    /,
) -> tuple[Any, ...] | str: ...
def mlp_adapt_bwd(
    cotangents: Any,
    saved: Any,
    params: Any,
    rates: Any,
    inputs: Any,
    targets: Any,
    steps: int,
    activation: Any,
    loss: str,
    first_order: bool,
    inner: Any,
    needs: Any,
    /,
) -> tuple[Any, ...]: ...
def mlp_meta_loss_fwd(
    params: Any,
    rates: Any,
    support_x: Any,
    support_y: Any,
    query_x: Any,
    query_y: Any,
    steps: int,
    activation: Any,
    loss: str,
    first_order: bool,
    return_outputs: bool,
    inner: Any,
    needs: Any,
    /,
) -> tuple[Any, ...] | str: ...
def mlp_meta_loss_value_and_grad(
    params: Any,
    rates: Any,
    support_x: Any,
    support_y: Any,
    query_x: Any,
    query_y: Any,
    steps: int,
    activation: Any,
    loss: str,
    first_order: bool,
    return_outputs: bool,
    inner: Any,
    needs: Any,
    cotangents: Any,
    /,
) -> tuple[Any, ...] | str: ...
def mlp_meta_loss_bwd(
    cotangents: Any,
    saved: Any,
    params: Any,
    rates: Any,
    support_x: Any,
    support_y: Any,
    query_x: Any,
    query_y: Any,
    steps: int,
    activation: Any,
    loss: str,
    first_order: bool,
    return_outputs: bool,
    inner: Any,
    needs: Any,
    /,
) -> tuple[Any, ...]: ...
def conv_forward_fwd(params: Any, inputs: Any, blocks: Any, needs: Any, /) -> tuple[Any, ...] | str: ...
def conv_forward_bwd(
    cotangents: Any, saved: Any, params: Any, inputs: Any, blocks: Any, needs: Any, /
) -> tuple[Any, ...]: ...
def conv_loss_fwd(
    params: Any, inputs: Any, targets: Any, blocks: Any, loss: str, needs: Any, /
) -> tuple[Any, ...] | str: ...
def conv_loss_value_and_grad(
    params: Any, inputs: Any, targets: Any, blocks: Any, loss: str, needs: Any, cotangents: Any, /
) -> tuple[Any, ...] | str: ...
def conv_loss_bwd(
    cotangents: Any, saved: Any, params: Any, inputs: Any, targets: Any, blocks: Any, loss: str, needs: Any, /
) -> tuple[Any, ...]: ...
def conv_grad_fwd(
    params: Any, inputs: Any, targets: Any, blocks: Any, loss: str, needs: Any, /
) -> tuple[Any, ...] | str: ...
def conv_grad_bwd(
    cotangents: Any, saved: Any, params: Any, inputs: Any, targets: Any, blocks: Any, loss: str, needs: Any, /
) -> tuple[Any, ...]: ...
def conv_hvp_fwd(
    params: Any, vectors: Any, inputs: Any, targets: Any, blocks: Any, loss: str, curvature: str, needs: Any, /
) -> tuple[Any, ...] | str: ...
def conv_adapt_fwd(
    params: Any,
    rates: Any,
    inputs: Any,
    targets: Any,
    steps: int,
    blocks: Any,
    loss: str,
    first_order: bool,
    inner: Any,
    needs: Any,
    /,
) -> tuple[Any, ...] | str: ...
def conv_adapt_bwd(
    cotangents: Any,
    saved: Any,
    params: Any,
    rates: Any,
    inputs: Any,
    targets: Any,
    steps: int,
    blocks: Any,
    loss: str,
    first_order: bool,
    inner: Any,
    needs: Any,
    /,
) -> tuple[Any, ...]: ...
def conv_meta_loss_fwd(
    params: Any,
    rates: Any,
    support_x: Any,
    support_y: Any,
    query_x: Any,
    query_y: Any,
    steps: int,
    blocks: Any,
    loss: str,
    first_order: bool,
    return_outputs: bool,
    inner: Any,
    needs: Any,
    /,
) -> tuple[Any, ...] | str: ...
def conv_meta_loss_value_and_grad(
    params: Any,
    rates: Any,
    support_x: Any,
    support_y: Any,
    query_x: Any,
    query_y: Any,
    steps: int,
    blocks: Any,
    loss: str,
    first_order: bool,
    return_outputs: bool,
    inner: Any,
    needs: Any,
    cotangents: Any,
    /,
) -> tuple[Any, ...] | str: ...
def conv_meta_loss_with_statistics(
    params: Any,
    rates: Any,
    support_x: Any,
    support_y: Any,
    query_x: Any,
    query_y: Any,
    steps: int,
    blocks: Any,
    loss: str,
    first_order: bool,
    return_outputs: bool,
    inner: Any,
    needs: Any,
    cotangents: Any,
    /,
) -> tuple[Any, ...] | str: ...
def conv_meta_loss_bwd(
    cotangents: Any,
    saved: Any,
    params: Any,
    rates: Any,
    support_x: Any,
    support_y: Any,
    query_x: Any,
    query_y: Any,
    steps: int,
    blocks: Any,
    loss: str,
    first_order: bool,
    return_outputs: bool,
    inner: Any,
    needs: Any,
    /,
) -> tuple[Any, ...]: ...

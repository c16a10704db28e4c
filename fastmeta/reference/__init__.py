"""The mathematics of every op in plain PyTorch, by the op's name."""

from .adam_step import adam_step
from .conv_adapt import conv_adapt
from .conv_forward import conv_forward
from .conv_grad import conv_grad
from .conv_hvp import conv_hvp
from .conv_loss import conv_loss
from .conv_meta_loss import conv_meta_loss
from .hvp import hvp
from .matching_log_probs import matching_log_probs
from .mlp_adapt import mlp_adapt
from .mlp_forward import mlp_forward
from .mlp_grad import mlp_grad
from .mlp_hvp import mlp_hvp
from .mlp_loss import mlp_loss
from .mlp_meta_loss import mlp_meta_loss
from .momentum_step import momentum_step
from .proto_log_softmax import proto_log_softmax
from .proto_loss import proto_loss
from .proto_loss_loo import proto_loss_loo
from .prototypes import prototypes
from .sgd_step import sgd_step
from .symmetric_loss import symmetric_loss
from .task_conv2d import task_conv2d

__all__ = [
    "adam_step",
    "conv_adapt",
    "conv_forward",
    "conv_grad",
    "conv_hvp",
    "conv_loss",
    "conv_meta_loss",
    "hvp",
    "matching_log_probs",
    "mlp_adapt",
    "mlp_forward",
    "mlp_grad",
    "mlp_hvp",
    "mlp_loss",
    "mlp_meta_loss",
    "momentum_step",
    "proto_log_softmax",
    "proto_loss",
    "proto_loss_loo",
    "prototypes",
    "sgd_step",
    "symmetric_loss",
    "task_conv2d",
]

"""fastmeta: kernels for meta-learning and few-shot learning on PyTorch."""

from . import _torch, heads, optim, ragged  # noqa: F401  (_torch first: it refuses a torch that lacks what the rest uses)
from ._dispatch import backend
from .distance.matching_log_probs import matching_log_probs
from .distance.proto_log_softmax import proto_log_softmax
from .distance.proto_loss import proto_loss
from .distance.proto_loss_loo import proto_loss_loo
from .distance.prototypes import prototypes
from .distance.symmetric_loss import symmetric_loss
from .graphed import graphed
from .inner.adam_step import adam_step
from .inner.conv_adapt import conv_adapt
from .inner.conv_forward import conv_forward
from .inner.conv_grad import conv_grad
from .inner.conv_hvp import conv_hvp
from .inner.conv_loss import conv_loss
from .inner.conv_meta_loss import conv_meta_loss
from .inner.hvp import hvp
from .inner.mlp_adapt import mlp_adapt
from .inner.mlp_forward import mlp_forward
from .inner.mlp_grad import mlp_grad
from .inner.mlp_hvp import mlp_hvp
from .inner.mlp_loss import mlp_loss
from .inner.mlp_meta_loss import mlp_meta_loss
from .inner.momentum_step import momentum_step
from .inner.sgd_step import sgd_step
from .inner.task_conv2d import task_conv2d
from .learners.anil import ANIL
from .learners.imaml import IMAML
from .learners.leo import LEO
from .learners.mahalanobis_net import MahalanobisNet
from .learners.maml import MAML
from .learners.matching_net import FullContext, MatchingNet
from .learners.meta_sgd import MetaSGD
from .learners.proto_maml import ProtoMAML
from .learners.protonet import ProtoNet
from .learners.reptile import Reptile
from .loops.optimisers import SGD, Adam
from .networks.batch_norm import use_batch_statistics
from .training import Estimate, evaluate, fit
from .types import ConvBlock
from .unroll import unroll
from .value_and_grad import value_and_grad

__version__ = "0.1.0"

__all__ = [
    "ANIL",
    "IMAML",
    "LEO",
    "MAML",
    "SGD",
    "Adam",
    "ConvBlock",
    "Estimate",
    "FullContext",
    "MahalanobisNet",
    "MatchingNet",
    "MetaSGD",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
    "adam_step",
    "backend",
    "conv_adapt",
    "conv_forward",
    "conv_grad",
    "conv_hvp",
    "conv_loss",
    "conv_meta_loss",
    "evaluate",
    "fit",
    "graphed",
    "heads",
    "hvp",
    "matching_log_probs",
    "mlp_adapt",
    "mlp_forward",
    "mlp_grad",
    "mlp_hvp",
    "mlp_loss",
    "mlp_meta_loss",
    "momentum_step",
    "optim",
    "proto_log_softmax",
    "proto_loss",
    "proto_loss_loo",
    "prototypes",
    "ragged",
    "sgd_step",
    "symmetric_loss",
    "task_conv2d",
    "unroll",
    "use_batch_statistics",
    "value_and_grad",
]

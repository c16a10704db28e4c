"""A right call of every op, and values that are wrong for most arguments."""

import numpy as np
import torch

import fastmeta
from harness.compare import outputs

LABELS = torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)


def arguments(op):
    """A right call, by name."""
    torch.manual_seed(0)
    x, params = torch.randn(2, 6, 4), [torch.randn(3, 4), torch.randn(3)]
    centres = torch.randn(2, 3, 4)
    images, blocks = torch.randn(2, 6, 1, 4, 4), [fastmeta.ConvBlock(norm=1)]
    of_conv = [torch.randn(3, 1, 3, 3), *torch.randn(3, 3), torch.randn(3, 12), torch.randn(3)]
    weights = torch.randn(2, 6)
    conv = {
        "weights": weights,
        "params": of_conv,
        "inputs": images,
        "targets": LABELS,
        "blocks": blocks,
        "loss": "cross_entropy",
    }
    mlp = {
        "weights": weights,
        "params": params,
        "inputs": x,
        "targets": LABELS,
        "activation": "tanh",
        "residual_norm": False,
        "loss": "cross_entropy",
    }
    inner = {
        "lr": [torch.full_like(p, 0.1) for p in params],
        "steps": 2,
        "first_order": False,
        "batch_per_step": False,
        "optimiser": None,
    }
    episode = {"support_x": x, "support_y": LABELS, "query_x": -x, "query_y": LABELS}
    batched = [torch.randn(2, 3, 4), torch.randn(2, 3)]
    episode |= {"weights": weights, "query_weights": -weights}
    found = {
        "prototypes": {"support": x, "labels": LABELS, "num_classes": 3},
        "proto_log_softmax": {"query": x, "prototypes": centres, "metric": "euclidean", "temperature": 2.0},
        "proto_loss": {
            "query": x, "prototypes": centres, "targets": LABELS, "metric": "cosine", "temperature": torch.tensor(0.5),
            "ignore_index": -100, "reduction": "mean", "exclude": (LABELS + 1) % 3, "margin": 0.2, "target_distance": weights,
            "bias": None, "classes": None, "label_smoothing": 0.0, "return_accuracy": False,
        },
        "proto_loss_loo": {
            "embeddings": x, "labels": LABELS, "num_classes": 3, "metric": "cosine", "temperature": 0.5, "reduction": "mean",
        },
        "symmetric_loss": {"query": x, "keys": -x, "metric": "cosine", "temperature": 0.5},
        "matching_log_probs": {
            "query": x, "support": x, "labels": LABELS, "num_classes": 3, "metric": "cosine", "temperature": 0.5,
        },
        "sgd_step": {"params": params, "grads": batched, "lr": [0.1, torch.tensor(0.2)]},
        "momentum_step": {
            "params": params, "grads": batched, "velocities": batched, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1,
            "nesterov": True,
        },
        "adam_step": {
            "params": params, "grads": batched, "means": batched, "squares": [x.square() for x in batched], "lr": 0.1,
            "step": 2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0,
        },
        "mlp_forward": {"params": params, "inputs": x, "activation": "relu", "residual_norm": False},
        "mlp_loss": mlp,
        "mlp_grad": mlp,
        "mlp_hvp": mlp | {"vectors": [torch.randn(2, 3, 4), torch.randn(2, 3)], "curvature": "ggn"},
        "mlp_adapt": mlp | inner,
        "mlp_meta_loss": {"params": params} | inner | episode | {"loss": "cross_entropy"} | {
            "activation": "relu", "residual_norm": False,
        },
        "conv_forward": {"params": of_conv, "inputs": images, "blocks": blocks},
        "conv_loss": conv,
        "conv_grad": conv,
        "conv_hvp": conv | {"vectors": [torch.randn(2, *p.shape) for p in of_conv], "curvature": "ggn"},
        "conv_adapt": conv | inner | {"lr": [torch.full_like(p, 0.1) for p in of_conv]},
        "conv_meta_loss": {"params": of_conv, "blocks": blocks, "loss": "cross_entropy"} | inner | episode | {
            "lr": [0.1] * 6, "support_x": images, "query_x": -images,
        },
        "task_conv2d": {
            "x": torch.randn(2, 3, 1, 5, 5), "weight": torch.randn(2, 4, 1, 3, 3), "bias": torch.randn(4), "stride": 1,
            "padding": 1,
        },
        "hvp": {"fn": lambda p: p.pow(3).sum(), "params": torch.ones(3), "vectors": torch.ones(3)},
    }  # fmt: skip
    return dict(found[op])


def wrong():
    """One of every kind; some are right for some arguments."""
    nan = float("nan")
    return [
        None, "x", b"relu", 2.5, nan, float("inf"), 3, 5, -1, 2**31, 2**40, 2**63, 2**70, 10**400, -(10**400), True, 1 + 2j, object(),
        2.0, 3.0, -100.0,
        [], [None], {}, {"a": 1}, (1, 2), range(3), len, slice(2), np.ones(2), np.array(3), np.float32(nan), np.int64(-7), np.bool_(True),
        torch.tensor(nan), torch.tensor(2.0), torch.tensor(3), torch.tensor(True), torch.ones(()).double(), torch.ones(2, 6), torch.ones(0),
        torch.ones(2, 6, 4).half(), torch.ones(2, 6, 4, device="meta"), torch.ones(2, 6, 4).to_sparse(),
        torch.ones(2, 6, 4, dtype=torch.complex64), torch.ones(2, 6, 4, dtype=torch.int64), torch.ones(2, 6, dtype=torch.int32),
        torch.full((2, 6), 2**40), torch.nested.nested_tensor([torch.ones(2)] * 2), torch.ones(2).to(torch.float8_e5m2),
        [torch.ones(3, 4), None, torch.ones(3)], [torch.tensor(nan)] * 2, [nan, nan], ["x", 0.1], [torch.ones(2), torch.ones(2)],
        torch.ones(3, 4), [torch.ones(3, 4, dtype=torch.int64), None], [None, torch.ones(3)], torch.ones(2, 6, 4).tolist(),
    ]  # fmt: skip


def call(op, given):
    return outputs(getattr(fastmeta, op)(**given))

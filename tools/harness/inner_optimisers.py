"""Inner optimisers of higher and TorchOpt that are more than theta - alpha g: what their tests share."""

import pytest
import torch

OPTIONS = {
    "momentum": {"lr": 0.1, "momentum": 0.9},
    "decay": {"lr": 0.1, "weight_decay": 0.2},
    "nesterov": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2, "nesterov": True},
    "Adam": {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-2},
    "Adam with decay": {"lr": 0.05, "betas": (0.6, 0.8), "eps": 1e-3, "weight_decay": 0.2},
}


@pytest.fixture(autouse=True)
def all_digits():
    """TorchOpt raises betas to powers in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def optimiser(name, params, **more):
    kind = torch.optim.Adam if "Adam" in name else torch.optim.SGD
    return kind(params, **OPTIONS[name] | more)


def tensors(state):
    return [x for x in state.values() if isinstance(x, torch.Tensor) and x.ndim]

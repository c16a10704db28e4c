"""Every learner around its network, by name: of images and of sinusoids."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from common import Learner, conv4, mlp
from torch import Tensor, nn

import fastmeta

OF_SINUSOIDS = ("maml", "meta-sgd", "anil", "reptile", "imaml")
METRIC = ("protonet", "matching-net", "matching-net-fce")  # for any number of ways, with running statistics
OF_IMAGES = (*OF_SINUSOIDS, "proto-maml", "leo", *METRIC)
SIDE, FEATURES = 28, 64  # pixels; the width of the MLP's last hidden layer, or of its embedding


def network(
    model: str, *, ways: int, hidden: int, size: int = SIDE, channels: int = 1, running_statistics: bool = False
) -> tuple[nn.Sequential, nn.Sequential]:
    """An encoder, and the layers from its features to `ways` outputs: "conv4" and "mlp" of images, "sinusoid" of numbers.

    Conv4's batch norm uses the statistics of each batch, or running ones in eval mode.
    """
    if model == "sinusoid":
        return nn.Sequential(*mlp(1, 40, 40), nn.ReLU()), nn.Sequential(nn.Linear(40, 1))
    if model == "mlp":
        encoder = nn.Sequential(nn.Flatten(), *mlp(channels * size * size, hidden, FEATURES))
        return encoder, nn.Sequential(nn.ReLU(), nn.Linear(FEATURES, ways))
    encoder = conv4(hidden, channels, track_running_stats=running_statistics)
    return encoder, nn.Sequential(nn.Linear(hidden * (size // 16) ** 2, ways))


def build(
    learner: str,
    *,
    ways: int = 1,
    model: str = "conv4",
    hidden: int = 32,
    size: int = SIDE,
    channels: int = 1,
    inner_lr: float = 0.4,
    inner_steps: int = 1,
    embedding: nn.Module | None = None,
    **options: Any,
) -> Learner:
    """`embedding`: of LEO, images to features, which stays as it is; None: the pixels. `options`: of the learner."""
    images = {"size": size, "channels": channels}
    encoder, head = network(model, ways=ways, hidden=hidden, **images, running_statistics=learner in METRIC)
    loop = {"lr": inner_lr, "steps": inner_steps, **options}
    of_any = loop | {"loss": "mse" if model == "sinusoid" else "cross_entropy"}
    whole = nn.Sequential(*encoder, *head)
    match learner:
        case "maml":
            return fastmeta.MAML(whole, **of_any)
        case "meta-sgd":
            return fastmeta.MetaSGD(whole, **of_any)
        case "anil":
            return fastmeta.ANIL(encoder, head, **of_any)
        case "reptile":
            return fastmeta.Reptile(whole, **of_any)
        case "imaml":
            return fastmeta.IMAML(whole, **of_any)
        case "proto-maml":
            return fastmeta.ProtoMAML(encoder, ways, **loop)
        case "leo":
            return OnEmbeddings(embedding or nn.Flatten(), (channels, size, size), num_classes=ways, **options)
        case "matching-net":
            return fastmeta.MatchingNet(encoder, **options)
        case "matching-net-fce":
            context = fastmeta.FullContext(head[-1].in_features)
            return fastmeta.MatchingNet(encoder, context=context, **options)
    return fastmeta.ProtoNet(encoder, metric="sqeuclidean", **options)


def after(learner: Any, steps: int) -> Any:
    """The same learner with another number of inner steps."""
    other = copy.copy(learner)
    other.steps = steps
    return other


class OnEmbeddings(nn.Module):
    """LEO on features of length 1: those of a trained network that stays as it is, in eval mode."""

    def __init__(self, embedding: nn.Module, image: tuple[int, ...], **options: Any) -> None:
        super().__init__()
        self.embedding = embedding.eval().requires_grad_(False)
        features = self._embedded(torch.zeros(1, 1, *image)).shape[-1]
        self.leo = fastmeta.LEO(features, **options)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, *query_y: Tensor) -> Tensor:
        return self.leo(self._embedded(support_x), support_y, self._embedded(query_x), *query_y)

    def train(self, mode: bool = True) -> OnEmbeddings:
        super().train(mode)
        self.embedding.eval()
        return self

    def _embedded(self, x: Tensor) -> Tensor:
        """[T, n, *image] -> [T, n, D]"""
        return F.normalize(self.embedding(x.flatten(0, 1)).flatten(1), dim=-1).unflatten(0, x.shape[:2])

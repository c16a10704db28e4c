from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _check
from .._ask import OF_SUPPORT, ask
from ..distance.prototypes import prototypes
from ..inner.mlp_adapt import mlp_adapt
from ..inner.mlp_forward import mlp_forward
from ..inner.mlp_grad import mlp_grad
from ..inner.mlp_meta_loss import mlp_meta_loss_and_outputs
from ..networks.users_model import is_linear
from ..reference.mlp_loss import IGNORE_INDEX
from . import _arguments
from ._episode import known_ways, ways_of
from ._learner import Learner

LOG2 = math.log(2)


class LEO(Learner):
    r"""The inner loop runs in a latent code z_n of each class, which decodes to the class's weights w_n of a linear classifier.

    It works on features `[n, D]` of any network, whose gradient comes through support_x and query_x. For the classes n = 1 .. N
    and the support examples x_i, x_j, with E the encoder, r the relation net and G, H the two halves of the decoder, all linear
    but r, none with a bias:

        m_n, h_n = mean of r(E x_i, E x_j) over i in class n and all j
        z_n ~ N(m_n, diag(std(h_n)^2)),           std(h) = log2(1 + e^h)
        w_n ~ N(G z_n, diag(std(H z_n)^2) 2 / (N + D))
        z <- z - lr * dL_support/dz               `steps` times
        w <- w - finetune_lr * dL_support/dw      `finetune_steps` times

    w is decoded anew from each z, and the scores of x are w_1 x, ..., w_N x. In training mode z and w are sampled, with one
    standard normal number for each of their elements, the same in all steps. In eval mode they are their means. L_support is the
    mean cross-entropy of the support. The meta-gradient goes through everything.

    `features`: D.
    `latents`: L, the size of a code.
    `lr`, `finetune_lr`: where the learned rates start: one for each element of a code `[L]` and of a class's weights `[D]`,
    shared by the classes. The defaults suit features of length 1.
    `dropout`: of the features before the encoder and, by other masks, before the classifier. The latter stay in all steps. Half, the
    authors' choice, suits their 640 features; of 32 on Omniglot, none or a tenth is far better.
    `num_classes`: the number of ways. None reads it from the labels of each call, which on CUDA waits for the device and warns
    once. Classes may differ in shots; each must have an example (ValueError).

        # support_x [T, S, D], support_y [T, S], query_x [T, Q, D]
        learner(support_x, support_y, query_x)  # scores [T, Q, N]
        learner.loss(support_x, support_y, query_x, query_y)  # [T]

    The loss is the query loss, the cross-entropy of `learner(...)`, plus regularisers, in eval mode too:

        kl_weight * KL(N(m, diag(std(h)^2)) || N(0, I))
            + encoder_weight * |stopgrad(z') - z|^2
            + orthogonality_weight * |C - I|^2

    with z' the code after the steps and C `[L, L]` the correlations (cosines) of what the elements of a code add to (G z, H z).
    Each is the mean over its elements, not their sum, as in the authors' code, from which the default weights and rates are.
    That code differs in three points: its inner loss is N times the mean, its noise is new in each step, and its std is another.
    The paper's L2 penalty is the optimiser's weight decay.

    Source: Rusu et al. 2019, arXiv:1807.05960.
    """

    def __init__(
        self,
        features: int,
        latents: int = 64,
        lr: float = 1.0,
        steps: int = 5,
        *,
        finetune_lr: float = 0.001,
        finetune_steps: int = 5,
        dropout: float = 0.5,
        kl_weight: float = 1e-3,
        encoder_weight: float = 1e-9,
        orthogonality_weight: float = 1e-3,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {"features": features, "latents": latents}
        for name, value in (sizes | {"steps": steps, "finetune_steps": finetune_steps}).items():
            _arguments.whole("LEO", name, value, int(name in sizes))
        weights = {
            "kl_weight": kl_weight,
            "encoder_weight": encoder_weight,
            "orthogonality_weight": orthogonality_weight,
        }
        for name, number in (weights | {"lr": lr, "finetune_lr": finetune_lr, "dropout": dropout}).items():
            _arguments.number("LEO", name, number)
        if not 0 <= dropout <= 1:
            raise ValueError(f"LEO: dropout must be between 0 and 1, got {dropout}")
        _arguments.whole("LEO", "num_classes", num_classes, 1, optional=True)
        self.features, self.steps, self.finetune_steps, self.num_classes = features, steps, finetune_steps, num_classes
        self.kl_weight, self.encoder_weight = kl_weight, encoder_weight
        self.orthogonality_weight = orthogonality_weight
        self.encoder = _linear(features, latents)
        self.relation = RelationNet(latents)
        self.decoder = _linear(latents, 2 * features)
        self.dropout = nn.Dropout(dropout)
        self.lr = nn.Parameter(torch.full((latents,), float(lr)))
        self.finetune_lr = nn.Parameter(torch.full((features,), float(finetune_lr)))

    def _predict(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        self._check(support_x, support_y, query_x)
        support, query = self.dropout(support_x), self.dropout(query_x)
        adapted = self._latent_loop(self._encode(support_x, support_y), support, support_y)
        head, rates = self._head(adapted)
        return mlp_forward(mlp_adapt(head, rates, support, support_y, steps=self.finetune_steps), query)

    def _losses(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        return self._evaluated(support_x, support_y, query_x, query_y, return_outputs=False)[0]

    def _losses_and_outputs(self, *data: Tensor) -> tuple[Tensor, Tensor]:
        losses, outputs = self._evaluated(*data, return_outputs=True)
        return losses, outputs

    def _evaluated(
        self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor, *, return_outputs: bool
    ) -> tuple[Tensor, ...]:
        self._check(support_x, support_y, query_x)
        support, query = self.dropout(support_x), self.dropout(query_x)
        code = self._encode(support_x, support_y)
        _check.label_range("LEO", "query_y", query_y, code.mean.shape[-2], IGNORE_INDEX)
        adapted = self._latent_loop(code, support, support_y)
        head, rates = self._head(adapted)
        of_query, *outputs = mlp_meta_loss_and_outputs(
            head, rates, support, support_y, query, query_y, steps=self.finetune_steps, return_outputs=return_outputs
        )
        return of_query + self._regularisers(code, adapted), *outputs

    def _outputs_of(self, query_x: Tensor) -> Sequence[int]:
        return known_ways("LEO", self.num_classes)

    def _encode(self, support_x: Tensor, support_y: Tensor) -> Gaussian:
        """[T, S, D], [T, S] -> the distribution of the codes [T, N, L]."""
        ways = ways_of("LEO", self.num_classes, support_y)
        mean, raw = self.relation(self.encoder(self.dropout(support_x)), support_y, ways).chunk(2, -1)
        return Gaussian(mean, standard_deviation(raw))

    def _latent_loop(self, code: Gaussian, support: Tensor, support_y: Tensor) -> Adapted:
        """`steps` gradient steps in z. dL/dz = [dL/dw, dL/dw * dw/d(Hz)] (G; H): no graph has to be differentiated for it."""
        start = code.mean + code.std * self._noise(code.mean, code.mean.shape[-1])
        noise = self._noise(start, self.features)
        z = start
        weights, slope = self._decode(z, noise)
        for _ in range(self.steps):
            grad, _ = mlp_grad([weights, None], support, support_y)[1]
            assert grad is not None
            z = z - self.lr * self._decoded_back(z, torch.cat([grad, grad * slope], -1))
            weights, slope = self._decode(z, noise)
        return Adapted(start, z, weights)

    def _decoded_back(self, z: Tensor, cotangent: Tensor) -> Tensor:
        """The decoder's vector-Jacobian product at z."""
        if is_linear(self.decoder):
            return cotangent @ self.decoder.weight
        found: Tensor = torch.func.vjp(self.decoder, z)[1](cotangent)[0]
        return found

    def _decode(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """[T, N, L], [T, N, D] -> the weights w, and dw/d(Hz), [T, N, D] both."""
        mean, raw = self.decoder(z).chunk(2, -1)
        noise = noise * math.sqrt(2 / (z.shape[-2] + self.features))
        return mean + noise * standard_deviation(raw), noise * raw.sigmoid() / LOG2

    def _noise(self, like: Tensor, size: int) -> Tensor:
        """[T, N, size]: standard normal, or 0 in eval mode."""
        draw = torch.randn if self.training else torch.zeros
        return draw(*like.shape[:-1], size, dtype=like.dtype, device=like.device)

    def _head(self, adapted: Adapted) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """The linear classifier of each task, as the mlp ops take it, and the rates of its fine-tuning [N, D]."""
        return [adapted.weights, None], [self.finetune_lr.expand(adapted.weights.shape[-2:]), None]

    def _regularisers(self, code: Gaussian, adapted: Adapted) -> Tensor:
        """[T]"""
        kl = kl_to_standard_normal(code).mean((-2, -1))
        moved = (adapted.z.detach() - adapted.start).square().mean((-2, -1))
        correlated = squared_correlations(self.decoder.weight).mean()
        return self.kl_weight * kl + self.encoder_weight * moved + self.orthogonality_weight * correlated

    def _check(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> None:
        for name in ("steps", "finetune_steps"):
            _arguments.whole("LEO", name, getattr(self, name), 0)
        for name, x in (("support_x", support_x), ("query_x", query_x)):
            if x.ndim != 3 or x.shape[-1] != self.features:
                raise ValueError(f"LEO: {name} must have shape [T, n, {self.features}], got {list(x.shape)}")
        if not isinstance(self.decoder, nn.Linear):
            raise TypeError(f"LEO: decoder must be a torch.nn.Linear, got {type(self.decoder).__name__}")
        rates = {"lr": self.lr, "finetune_lr": self.finetune_lr}
        _check.floating("LEO", **rates, support_x=support_x)
        for name, rate in rates.items():
            _check.rate("LEO", name, rate)
        if not support_y.numel():
            raise ValueError(f"LEO: support_y must hold at least one example, got shape {list(support_y.shape)}")


class RelationNet(nn.Module):
    """r(a, b): an MLP of three layers with ReLU on pairs of codes, averaged for each class.

    It runs on all S^2 pairs of a task, but only its middle layer: the first is a sum of a's part and b's, and the last, being
    linear, takes the averages.
    """

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.first, self.second, self.third = (_linear(2 * latents, 2 * latents) for _ in range(3))

    def forward(self, codes: Tensor, labels: Tensor, ways: int) -> Tensor:
        """[T, S, L], [T, S] -> [T, N, 2 L]"""
        if not (is_linear(self.first) and self.first.bias is None and is_linear(self.third)):
            return self._pair_by_pair(codes, labels, ways)
        of_a, of_b = self.first.weight.chunk(2, -1)
        hidden = F.relu(F.linear(codes, of_a).unsqueeze(-2) + F.linear(codes, of_b).unsqueeze(-3))  # [T, S, S, 2 L]
        hidden = F.relu(self.second(hidden)).mean(-2)
        return self.third(ask("LEO", prototypes, OF_SUPPORT, hidden, labels, ways))

    def _pair_by_pair(self, codes: Tensor, labels: Tensor, ways: int) -> Tensor:
        """What layers that are more than a product need, such as those with hooks."""
        wide = (*codes.shape[:2], codes.shape[1], codes.shape[2])
        pairs = torch.cat([codes.unsqueeze(2).expand(wide), codes.unsqueeze(1).expand(wide)], -1)
        each = self.third(F.relu(self.second(F.relu(self.first(pairs)))))  # [T, S, S, 2 L]
        return ask("LEO", prototypes, OF_SUPPORT, each.mean(-2), labels, ways)


class Gaussian(NamedTuple):
    mean: Tensor  # [T, N, L]
    std: Tensor  # [T, N, L]


class Adapted(NamedTuple):
    start: Tensor  # z before the steps, [T, N, L]
    z: Tensor  # after them, [T, N, L]
    weights: Tensor  # decoded from it, [T, N, D]


def standard_deviation(raw: Tensor) -> Tensor:
    """log2(1 + e^raw): 1 at 0. An exponential would soon overflow in an inner loop that also drives the noise up."""
    return F.softplus(raw) / LOG2


def kl_to_standard_normal(q: Gaussian) -> Tensor:
    """KL(q || N(0, 1)) of each element: (mean^2 + std^2 - 1) / 2 - log std."""
    return (q.mean.square() + q.std.square() - 1) / 2 - q.std.log()


def squared_correlations(weight: Tensor) -> Tensor:
    """(C - I)^2 elementwise, [L, L]: C_ij the cosine of the columns i and j of `weight` [2 D, L]."""
    columns = F.normalize(weight, dim=0)
    return (columns.T @ columns - torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)).square()


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer

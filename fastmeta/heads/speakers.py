from __future__ import annotations

import torch
from torch import Tensor, nn

from ..distance.proto_loss import proto_loss
from ..distance.proto_loss_loo import proto_loss_loo
from . import _arguments

LEAST_W = 1e-6  # below it w counts as that


class _Similarity(nn.Module):
    """Logits w cos(x, c) + b, w and b learned."""

    def __init__(self, init_w: float = 10.0, init_b: float = -5.0) -> None:
        super().__init__()
        name = type(self).__name__
        self.w = nn.Parameter(torch.tensor(_arguments.positive(name, "init_w", init_w)))
        self.b = nn.Parameter(torch.tensor(_arguments.finite(name, "init_b", init_b)))

    def _temperature(self, like: Tensor) -> Tensor:
        return self.w.to(like.dtype).clamp(min=LEAST_W).reciprocal()

    def _with_bias(self, loss: Tensor) -> Tensor:
        """A softmax does not see b; distributed training wants a gradient of every parameter all the same."""
        return torch.add(loss, self.b.to(loss.dtype), alpha=0)


class GE2E(_Similarity):
    r"""loss = -mean_{ji} log softmax_k(w cos(e_ji, c_k) + b)[j], c_j the mean of speaker j's other utterances, c_k that of k's.

    Shapes: embeddings `[speakers, utterances, D]`, two utterances or more -> `[]`. `w` starts at `init_w`, positive, and counts as 1e-6
    where it falls below; `b` starts at `init_b`, and its gradient is 0. `labels` are not looked at: the first index says who speaks.

    Errors: TypeError and ValueError, in the head's name. Kernels: those of `proto_loss_loo`.

    Source: Wan et al. 2018, arXiv:1710.10467, eq. 6, 8 and 9.

    ```python
    import torch
    import fastmeta

    criterion = fastmeta.heads.GE2E(init_w=10.0, init_b=-5.0)
    voices = torch.randn(64, 10, 256, requires_grad=True)
    criterion(voices).backward()
    ```
    """

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        _arguments.utterances("GE2E", embeddings)
        speakers, utterances = embeddings.shape[:2]
        own = torch.arange(speakers, device=embeddings.device).unsqueeze(1).expand(-1, utterances).flatten()
        loss = proto_loss_loo(
            embeddings.flatten(0, 1), own, speakers, metric="cosine", temperature=self._temperature(embeddings)
        )
        return self._with_bias(loss)


class AngleProto(_Similarity):
    r"""loss = -mean_j log softmax_k(w cos(e_j1, c_k) + b)[j], c_k the mean of speaker k's utterances but the first.

    Shapes: embeddings `[speakers, utterances, D]`, two utterances or more -> `[]`. `w`, `b` and `labels` as in `GE2E`.

    Errors: TypeError and ValueError, in the head's name. Kernels: those of `proto_loss`.

    Source: Chung et al. 2020, arXiv:2003.11982, section 2.3.
    """

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        _arguments.utterances("AngleProto", embeddings)
        first, others = embeddings.split([1, embeddings.shape[1] - 1], 1)  # one gradient, where slices have one each
        first = first.squeeze(1)
        # A cosine is that with the sum, whose gradient is no tensor of its own; of float16 it might be infinite.
        centres = others.mean(1) if others.dtype == torch.float16 else others.sum(1)
        loss = proto_loss(
            first, centres, _arguments.numbered(first), metric="cosine", temperature=self._temperature(embeddings)
        )
        return self._with_bias(loss)

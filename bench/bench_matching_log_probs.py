import pytest
import torch
import torch.nn.functional as F

import fastmeta
from measure.contenders import compiled, forward_and_backward, on_backends


@pytest.mark.parametrize("D", [64, 640])
def bench_matching_log_probs(race, D):
    """Forward and backward to queries and supports, against attention by a matrix product and by cosine_similarity."""
    T, Q, S, N = 32, 75, 25, 5
    leaves = [torch.randn(T, Q, D, requires_grad=True), torch.randn(T, S, D, requires_grad=True)]
    labels = torch.arange(S).remainder(N).expand(T, S)
    one_hot = F.one_hot(labels, N).float()

    def by_mm(query, support):
        cosines = F.normalize(query, dim=-1) @ F.normalize(support, dim=-1).mT
        return (cosines.softmax(-1) @ one_hot).log()

    def by_cosine_similarity(query, support):
        cosines = F.cosine_similarity(query.unsqueeze(-2), support.unsqueeze(-3), dim=-1)
        return (cosines.softmax(-1) @ one_hot).log()

    def ours(query, support):
        return fastmeta.matching_log_probs(query, support, labels, N)

    eager = {"mm": by_mm, "cosine_similarity": by_cosine_similarity}
    race(
        f"matching_log_probs fwd+bwd T{T} Q{Q} S{S} N{N} D{D}",
        on_backends(forward_and_backward(ours, leaves))
        | {name: forward_and_backward(way, leaves) for name, way in eager.items()},
        compiled={f"compiled {name}": forward_and_backward(compiled(way), leaves) for name, way in eager.items()},
        floor=(2 * (sum(t.nbytes for t in leaves) + 4 * T * Q * N), 6 * T * Q * S * D),
        mode="forward + backward",
    )

import pytest
import torch
from common import backward, on_backends

import fastmeta


@pytest.mark.parametrize("name", ["ext", "reference", "mm"])
@pytest.mark.parametrize("D", [64, 640])
def bench_matching_log_probs(race, D, name):
    """32 episodes, 75 queries, 25 supports, forward and backward, against attention by a matrix product."""
    query, support = torch.randn(32, 75, D, requires_grad=True), torch.randn(32, 25, D, requires_grad=True)
    labels = torch.arange(25).remainder(5).expand(32, 25)
    one_hot = torch.nn.functional.one_hot(labels, 5).float()

    def by_mm():
        cosines = torch.nn.functional.normalize(query, dim=-1) @ torch.nn.functional.normalize(support, dim=-1).mT
        return backward([(cosines.softmax(-1) @ one_hot).log()], (query, support))

    def ours():
        return backward([fastmeta.matching_log_probs(query, support, labels, 5)], (query, support))

    race(f"matching_log_probs fwd+bwd T32 Q75 S25 N5 D{D}", on_backends(ours) | {"mm": by_mm}, name)

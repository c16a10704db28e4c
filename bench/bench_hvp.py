import torch

import fastmeta
from measure.contenders import mlp


def bench_hvp(race):
    """The general product against the fused one, on the same MLP."""
    params, x, y = mlp((64, 32, 5), 1, 50, 5)
    params = [p.detach() for p in params]
    vectors = [torch.randn_like(p) for p in params]

    def general():
        return fastmeta.hvp(lambda p: torch.nn.functional.cross_entropy(net(p), y[0]), params, vectors)

    def net(p):
        return torch.relu(x[0] @ p[0].mT + p[1]) @ p[2].mT + p[3]

    contenders = {"ext": lambda: fastmeta.mlp_hvp(params, vectors, x[0], y[0]), "reference": general}
    race("hvp (64, 32, 5) n50: mlp_hvp (ext) and hvp (reference)", contenders)

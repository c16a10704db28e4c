"""MatchingNet and its full context embeddings against plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta
from harness.plain_loops import D, losses_of


def episode(tasks=3, ways=3, shots=2):
    y = torch.arange(ways).repeat(shots).expand(tasks, -1)
    draw = lambda: torch.randn(tasks, ways * shots, 4, dtype=D)  # noqa: E731
    return draw(), y, draw(), y


def plain(learner, sx, sy, qx):
    """log p of the query, one task after the other."""
    found = []
    for x, y, q in zip(sx, sy, qx, strict=True):
        support, query = learner.encoder(x), learner.encoder(q)
        if learner.context is not None:
            support, query = plain_context(learner.context, support, query)
        attention = (F.cosine_similarity(query[:, None], support[None], dim=-1) / learner.temperature).softmax(-1)
        found.append((attention @ F.one_hot(y, 3).to(D)).log())
    return torch.stack(found)


def plain_context(context, support, query):
    """Example by example; both LSTMs by torch's own cell, the query's with [h, r] as its state."""
    width = support.shape[1]
    both = context.support(support.unsqueeze(0))[0].squeeze(0)
    g = torch.stack([both[i, :width] + both[i, width:] + support[i] for i in range(len(support))])
    rows = []
    for x in query:
        h, r, cell = None, None, torch.zeros(width, dtype=D)
        for _ in range(context.steps):
            gates = context.of_input.weight @ x + context.of_input.bias
            if h is not None:
                gates = gates + context.of_state.weight @ torch.cat([h, r])
            keep, write, out, new = gates.split(width)
            cell = torch.sigmoid(keep) * cell + torch.sigmoid(write) * torch.tanh(new)
            h = torch.sigmoid(out) * torch.tanh(cell) + x
            scores = torch.stack([h @ support for support in g])
            r = sum(a * support for a, support in zip(scores.softmax(0), g, strict=True))
        rows.append(h)
    return g, torch.stack(rows)


@pytest.mark.parametrize("context", [None, 1, 3])
def test_equals_plain_pytorch(context):
    learner = fastmeta.MatchingNet(
        nn.Linear(4, 5),
        context=context and fastmeta.FullContext(5, context),
        temperature=nn.Parameter(torch.tensor(0.6)),
    ).to(D)
    sx, sy, qx, qy = episode()
    torch.testing.assert_close(learner(sx, sy, qx), plain(learner, sx, sy, qx))
    qy = qy.clone()
    qy[0, 1:3] = -100
    losses = learner.loss(sx, sy, qx, qy)
    expected = losses_of(plain(learner, sx, sy, qx), qy, F.nll_loss)
    torch.testing.assert_close(losses, expected)
    params = [p for n, p in learner.named_parameters() if context != 1 or n != "context.of_state.weight"]
    torch.testing.assert_close(torch.autograd.grad(losses.sum(), params), torch.autograd.grad(expected.sum(), params))

"""MatchingNet and its full context embeddings against plain PyTorch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastmeta

D = torch.float64


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
    expected = torch.stack([F.nll_loss(z, y) for z, y in zip(plain(learner, sx, sy, qx), qy, strict=True)])
    torch.testing.assert_close(losses, expected)
    params = [p for n, p in learner.named_parameters() if context != 1 or n != "context.of_state.weight"]
    torch.testing.assert_close(torch.autograd.grad(losses.sum(), params), torch.autograd.grad(expected.sum(), params))


def test_context_of_the_query_does_not_depend_on_the_order_of_the_support_but_for_its_lstm():
    context = fastmeta.FullContext(5, 3).to(D)
    support, query = torch.randn(2, 6, 5, dtype=D), torch.randn(2, 4, 5, dtype=D)
    nn.init.zeros_(context.support.weight_ih_l0), nn.init.zeros_(context.support.weight_ih_l0_reverse)
    for p in context.support.parameters():
        nn.init.zeros_(p)  # then g is the support itself
    order = torch.randperm(6)
    torch.testing.assert_close(context(support[:, order], query)[1], context(support, query)[1])


def test_behaves_as_a_module():
    learner = fastmeta.MatchingNet(nn.Linear(4, 5), context=fastmeta.FullContext(5), num_classes=3).to(D)
    data, twin = episode(), copy.deepcopy(learner)
    learner.loss(*data).mean().backward()
    assert all(p.grad is not None for p in learner.parameters())
    torch.optim.SGD(learner.parameters(), 0.1).step()
    assert not twin.loss(*data).equal(learner.loss(*data))
    twin.load_state_dict(learner.state_dict())
    assert twin.loss(*data).equal(learner.loss(*data))


def test_errors():
    with pytest.raises(
        ValueError, match="MatchingNet: metric must be one of 'euclidean', 'sqeuclidean', 'cosine', got 'dot'"
    ):
        fastmeta.MatchingNet(nn.Linear(4, 5), metric="dot")
    with pytest.raises(ValueError, match="FullContext: steps must be a whole number, 1 or more, got 0"):
        fastmeta.FullContext(5, 0)
    sx, sy, qx, _ = episode()
    with pytest.raises(ValueError, match="MatchingNet: query_x must have the 3 tasks of support_x in front"):
        fastmeta.MatchingNet(nn.Linear(4, 5).to(D))(sx, sy, qx[:1])

"""ProtoNet on tasks of different sizes against itself on one task after the other."""

import pytest
import torch
from torch import nn

import fastmeta
from harness.plain_loops import D

pytestmark = pytest.mark.cpu
SIZES = ((4, 3, 2), (9, 5, 4), (3, 1, 3), (6, 3, 2))  # support, query, ways


def problem():
    support_x, query_x = ([torch.randn(sizes[i], 1, 6, dtype=D) for sizes in SIZES] for i in (0, 1))
    support_y = [torch.arange(s).flip(0) % n for s, _, n in SIZES]
    return support_x, support_y, query_x, [torch.randint(0, n, (q,)) for _, q, n in SIZES]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_equals_one_task_after_the_other(metric):
    temperature = nn.Parameter(torch.tensor(0.7, dtype=D))
    learner = fastmeta.ProtoNet(nn.Linear(6, 4).to(D), metric=metric, temperature=temperature)
    data, params = problem(), list(learner.parameters())
    one_by_one = [tuple(x.unsqueeze(0) for x in task) for task in zip(*data, strict=True)]
    losses, expected = learner.ragged_loss(*data), torch.cat([learner.loss(*task) for task in one_by_one])
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x.sin().sum(), params) for x in (losses, expected)))
    torch.testing.assert_close(learner.ragged(*data[:3]), [learner(*task[:3])[0] for task in one_by_one])
    same = fastmeta.ProtoNet(learner.encoder, num_classes=2)
    of_two = [x[::3] for x in data]
    torch.testing.assert_close(same.ragged_loss(*of_two), torch.cat([same.loss(*task) for task in one_by_one[::3]]))


def test_errors():
    learner, (sx, sy, qx, qy) = fastmeta.ProtoNet(nn.Flatten()), problem()
    for data, text in (
        ((sx[0], sy, qx, qy), "support_x must be a list with a tensor for each task, got Tensor"),
        ((sx, sy, qx[1:], qy), "query_x must hold one task or more, as many as support_x, got 3"),
        (([], [], [], []), "support_x must hold one task or more"),
        ((sx, [*sy[:3], None], qx, qy), "support_y must hold tensors, got NoneType"),
        ((sx, [*sy[:3], sy[0]], qx, qy), "support_y must have shape"),
        ((sx, sy, [*qx[:3], qx[3].float()], qy), "query_x must have the dtype of support_x"),
        (([x[:, 0] for x in sx], sy, qx, qy), "query_x must have examples of one shape"),
        ((sx, sy, qx, [*qy[:3], qy[3] + 5]), "query_y must be in"),
        ((sx, [*sy[:3], sy[3] + 1], qx, qy), "every class must have a support example, got none of class 0 in task 3"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^ProtoNet: {text}"):
            learner.ragged_loss(*data)
